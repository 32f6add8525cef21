//! `nnunet-dist preprocess`

use std::path::PathBuf;

use clap::Args;
use indexmap::IndexMap;
use indicatif::ProgressBar;

use super::ranks::or_abort;
use crate::config::{Source, WorkDir};
use crate::dataset::Dataset;
use crate::dist::{self, Communicator};
use crate::plan::Plans;
use crate::preprocess::preprocess_dataset;

/// Crop, normalise and resample all training cases as the plans say.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist preprocess -w hippocampus -c 3d_fullres -j 4
  mpirun -np 8 nnunet-dist preprocess -w hippocampus")]
pub struct Preprocess {
    /// Work folder that `plan` made.
    #[arg(short, long, value_name = "DIR")]
    work: PathBuf,

    /// Configurations to preprocess, separated by commas or spaces [default: all in the plans].
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',', num_args = 1..)]
    configurations: Vec<String>,

    /// Cases in memory at a time [default: number of cores].
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,
}

impl Preprocess {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let comm = dist::init()?;
        or_abort(self.preprocess(&*comm), &*comm)
    }

    fn preprocess(&self, comm: &dyn Communicator) -> anyhow::Result<()> {
        let work = WorkDir::new(&self.work);
        let source = Source::load(&work)?;
        let plans = Plans::load(&work.plans())?;
        let dataset = Dataset::open(&source.dataset)?;
        for (name, data_identifier) in self.chosen(&plans)? {
            let folder = work.preprocessed(&data_identifier);
            // What rank 0 has done stands for all.
            let progress = match comm.rank() {
                0 => super::progress_bar(dataset.cases.len() / comm.world_size(), &name),
                _ => ProgressBar::hidden(),
            };
            let on_case = |_: &str| progress.inc(1);
            let report = preprocess_dataset(&dataset, &plans, &name, &folder, self.jobs, &on_case, comm)?;
            progress.finish_and_clear();
            let (cases, seconds) = (report.cases, report.elapsed.as_secs_f64());
            if comm.rank() == 0 {
                println!("{name}: {cases} cases in {seconds:.1} s, {}", folder.display());
            }
        }
        Ok(())
    }

    /// The configurations to preprocess and their data identifiers. Configurations share data where the plans say so
    /// (the cascade's second stage and `3d_fullres`); it is made once.
    fn chosen(&self, plans: &Plans) -> anyhow::Result<IndexMap<String, String>> {
        let names: Vec<&String> = match self.configurations.as_slice() {
            [] => plans.configurations.keys().collect(),
            names => names.iter().collect(),
        };
        let mut chosen = IndexMap::new();
        for name in names {
            let identifier = plans.configuration(name)?.data_identifier;
            if !chosen.values().any(|known| *known == identifier) {
                chosen.insert(name.clone(), identifier);
            }
        }
        Ok(chosen)
    }
}
