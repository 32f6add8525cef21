//! `nnunet-dist find-best-configuration`

use std::path::PathBuf;

use clap::Args;

use super::output::{out, outln};
use super::plans::PlansFlag;
use crate::crossval::{self, BestOptions};
use nnunet_data::work::WorkDir;

/// Find the best configuration or ensemble of two configurations by cross-validation.
///
/// Also determines the postprocessing of the best one and writes instructions for predicting with it.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, after all folds of both were trained with --npz:
  nnunet-dist find-best-configuration -w hippocampus -c 2d 3d_fullres")]
pub struct FindBestConfiguration {
    /// Work folder with the trained configurations.
    #[arg(short, long, value_name = "DIR")]
    work: PathBuf,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configurations to compare [default: 2d, 3d_fullres, 3d_lowres and 3d_cascade_fullres, if in the plans].
    #[arg(short, long, value_name = "NAME", num_args = 1..)]
    configurations: Vec<String>,

    /// Folds [default: all of splits_final.json].
    #[arg(short, long, value_name = "FOLD", num_args = 1..)]
    folds: Vec<usize>,

    /// Do not compare ensembles; the probabilities of the held-out cases (train --npz) are then not needed.
    #[arg(long)]
    no_ensembling: bool,
}

impl FindBestConfiguration {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let work = self.plans.in_work(WorkDir::new(self.work));
        let options = BestOptions {
            configurations: self.configurations,
            folds: self.folds,
            without_ensembles: self.no_ensembling,
        };
        let (information, determined) = crossval::find_best(&work, &options)?;
        out!("{}\n{}\n", information.table(), determined.table());
        let instructions = work.inference_instructions();
        out!("{}", crossval::instructions(&information, &work)?);
        outln!("\nalso written to {}", instructions.display());
        Ok(())
    }
}
