//! `nnunet-dist find-best-configuration`

use std::path::PathBuf;

use clap::Args;

use super::plans::PlansFlag;
use crate::crossval::{self, BestOptions};
use nnunet_data::work::WorkDir;

/// Compare the cross-validated configurations and the ensembles of any two, determine the postprocessing of the best, and
/// write down how to predict with it.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, after all folds of both were trained with --npz:
  nnunet-dist find-best-configuration -w hippocampus -c 2d 3d_fullres")]
pub struct FindBestConfiguration {
    /// Work folder in which the configurations were trained.
    #[arg(short, long, value_name = "DIR")]
    work: PathBuf,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configurations [default: 2d, 3d_fullres, 3d_lowres and 3d_cascade_fullres, those of them that the plans have].
    #[arg(short, long, value_name = "NAME", num_args = 1..)]
    configurations: Vec<String>,

    /// Folds [default: all of splits_final.json].
    #[arg(short, long, value_name = "FOLD", num_args = 1..)]
    folds: Vec<usize>,

    /// Compare no ensembles; the held-out cases' probabilities (train --npz) are not needed then.
    #[arg(long)]
    no_ensembling: bool,
}

impl FindBestConfiguration {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let work = self.plans.on(WorkDir::new(self.work));
        let options = BestOptions {
            configurations: self.configurations,
            folds: self.folds,
            without_ensembles: self.no_ensembling,
        };
        let (information, determined) = crossval::find_best(&work, &options)?;
        print!("{}\n{}\n", information.table(), determined.table());
        let instructions = work.inference_instructions();
        print!("{}", crossval::instructions(&information, &work)?);
        println!("\nalso in {}", instructions.display());
        Ok(())
    }
}
