//! `nnunet-dist preprocess`

use std::path::PathBuf;

use clap::Args;
use indexmap::IndexMap;
use indicatif::ProgressBar;

use super::output::outln;
use super::plans::{self, PlansFlag};
use super::ranks::abort_on_error;
use nnunet_comm::distributed::{self, Communicator};
use nnunet_data::dataset::Dataset;
use nnunet_data::plan::Plans;
use nnunet_data::preprocess::{ResourceLimits, preprocess_dataset};
use nnunet_data::work::{Source, WorkDir};

/// Crop, normalize and resample all training cases according to the plans.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist preprocess -w hippocampus -c 3d_fullres -j 4 --max-memory 8G
  nnunet-dist preprocess -w hippocampus -p nnUNetResEncUNetLPlans
  mpirun -np 8 nnunet-dist preprocess -w hippocampus")]
pub struct Preprocess {
    /// Work folder created by `plan`.
    #[arg(short, long, value_name = "DIR")]
    work: PathBuf,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configurations to preprocess, separated by commas or spaces [default: all in the plans].
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',', num_args = 1..)]
    configurations: Vec<String>,

    /// Number of threads [default: number of cores].
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,

    /// Memory limit per process for the cases in flight, such as 512M or 8G [default: half of the memory of the machine
    /// or of the control group, divided by the processes of the host].
    ///
    /// The memory of a case is estimated from the headers of its files. A case that needs more than the limit is
    /// preprocessed alone, with a warning.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_memory: Option<u64>,
}

impl Preprocess {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let comm = distributed::init()?;
        abort_on_error(self.preprocess(&*comm), &*comm)
    }

    fn preprocess(&self, comm: &dyn Communicator) -> anyhow::Result<()> {
        let work = self.plans.in_work(WorkDir::new(&self.work));
        let source = Source::load(&work)?;
        let plans = plans::load(&work)?;
        let dataset = Dataset::open(&source.dataset)?;
        let limits = ResourceLimits { threads: self.jobs, memory: self.max_memory };
        for (name, data_identifier) in self.chosen(&plans)? {
            let folder = work.preprocessed(&data_identifier);
            // The result of rank 0 is valid for all ranks.
            let progress = match comm.rank() {
                0 => super::progress_bar(dataset.cases.len() / comm.world_size(), &name),
                _ => ProgressBar::hidden(),
            };
            let on_case = |_: &str| progress.inc(1);
            let report = preprocess_dataset(&dataset, &plans, &name, &folder, limits, &on_case, comm)?;
            progress.finish_and_clear();
            let (cases, seconds) = (report.cases, report.elapsed.as_secs_f64());
            if comm.rank() == 0 {
                outln!("{name}: {cases} cases in {seconds:.1} s, {}", folder.display());
            }
        }
        Ok(())
    }

    /// Returns the configurations to preprocess and their data identifiers. Configurations may share data (the
    /// cascade's second stage and `3d_fullres`); it is preprocessed once.
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

/// Parses a number of bytes: `512M`, `8G`, `1.5GiB`. Units are powers of 1024; without a unit the number is in bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = unit.trim().to_ascii_uppercase();
    let power = match unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit) {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(format!("unknown unit {unit}; use K, M, G or T")),
    };
    let number: f64 = number.parse().map_err(|_| "must be a number with a unit, such as 8G".to_owned())?;
    let bytes = number * 1024f64.powi(power);
    if bytes < 1.0 { Err("must be at least 1 byte".to_owned()) } else { Ok(bytes as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        let sizes = [("512M", 512 << 20), ("8G", 8 << 30), ("1.5GiB", 3 << 29), ("2 kb", 2048), ("77", 77)];
        for (text, size) in sizes {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for wrong in ["", "G", "8X", "-8G", "0", "1.2.3M", "8Gb/s"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
