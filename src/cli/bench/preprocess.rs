//! `nnunet-dist bench preprocess`

use std::path::PathBuf;

use clap::Args;

use crate::bench::{self, Report};
use crate::cli::preprocess::bytes;
use nnunet_data::dataset::{self, Dataset};
use nnunet_data::phantom::PhantomOptions;
use nnunet_data::plan::{self, PlannerOptions};
use nnunet_data::preprocess::Limits;

/// Number of generated cases if no dataset is given: enough to keep all cores busy.
const PHANTOMS: usize = 24;
const PHANTOM: [usize; 3] = [96, 112, 96];

/// Measure preprocessing of a dataset's training cases: the whole, and each step on the first 16 cases.
///
/// The dataset is planned first; this is not measured. Output goes to a temporary folder; TMPDIR selects its disk.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench preprocess
  nnunet-dist bench preprocess -d Task04_Hippocampus -c 3d_fullres --rounds 3")]
pub struct Preprocess {
    /// Raw dataset [default: 24 generated cases of about 96 x 112 x 96 voxels].
    #[arg(short, long, value_name = "DIR")]
    dataset: Option<PathBuf>,

    /// Configuration to preprocess.
    #[arg(short, long, value_name = "NAME", default_value = "3d_fullres")]
    configuration: String,

    /// Memory for the cases in flight, as in `nnunet-dist preprocess`.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_memory: Option<u64>,
}

impl Preprocess {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let folder = tempfile::tempdir()?;
        let raw = folder.path().join("Dataset999_Phantom");
        if self.dataset.is_none() {
            PhantomOptions { train_cases: PHANTOMS, test_cases: 0, shape: PHANTOM, seed: 1 }.generate(&raw)?;
        }
        let dataset = Dataset::open(self.dataset.as_deref().unwrap_or(&raw))?;
        let fingerprint = dataset::extract_fingerprint(&dataset)?;
        let configurations = vec![self.configuration.clone()];
        let options = PlannerOptions { configurations, ..PlannerOptions::default() };
        let plans = plan::plan(&dataset.name, &dataset.json, &fingerprint, &options)?;
        let limits = Limits { memory: self.max_memory, ..Limits::default() };
        let out = folder.path().join("preprocessed");
        let rows = bench::preprocess(&dataset, &plans, &self.configuration, &out, limits, rounds)?;
        Ok(Report::new("preprocess", rows))
    }
}
