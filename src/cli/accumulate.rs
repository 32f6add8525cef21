//! `nnunet-dist accumulate`

use std::path::PathBuf;

use clap::Args;

use super::output::{out, outln};
use super::plans::PlansFlag;
use crate::crossval::{self, HeldOutResults};
use nnunet_data::work::WorkDir;

/// Collect the held-out predictions of all folds in one folder and evaluate them together.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist accumulate -w hippocampus -c 3d_fullres")]
pub struct Accumulate {
    /// Work folder with the trained folds.
    #[arg(short, long, value_name = "DIR")]
    work: PathBuf,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configuration of the plans.
    #[arg(short, long, value_name = "NAME")]
    configuration: String,

    /// Folds [default: all of splits_final.json].
    #[arg(short, long, value_name = "FOLD", num_args = 1..)]
    folds: Vec<usize>,

    /// Folder for the label maps; must be empty or must not exist [default:
    /// WORK/runs/CONFIGURATION/crossval_results_folds_FOLDS, replaced if it exists].
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Accumulate {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let work = self.plans.in_work(WorkDir::new(self.work));
        let held_out = HeldOutResults::open(&work, &self.folds)?;
        let folder = held_out.prepare_folder(&self.configuration, self.output.as_deref())?;
        let summary = crossval::accumulate(&held_out, &self.configuration, &folder)?;
        out!("{}", summary.table());
        outln!("mean Dice {:.4}", summary.mean_dice());
        outln!("{} cases in {}", summary.metric_per_case.len(), folder.display());
        Ok(())
    }
}
