//! `nnunet-dist ensemble`

use std::path::PathBuf;

use clap::Args;

use super::LOCK;
use super::output::outln;
use nnunet_core::lock::FolderLock;
use nnunet_core::protect::Inputs;
use nnunet_infer::ensemble::{self, EnsembleOptions};

/// Average the class probabilities of several predictions of the same images and write label maps.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist predict -r hippocampus/runs/2d/fold_0 -i imagesTs -o a --save-probabilities
  nnunet-dist predict -r hippocampus/runs/3d_fullres/fold_0 -i imagesTs -o b --save-probabilities
  nnunet-dist ensemble -i a b -o ensemble --dataset-json hippocampus/dataset.json")]
pub struct Ensemble {
    /// Folders with CASE.npz and a label map for each case; all must contain the same cases.
    #[arg(short, long, value_name = "DIR", num_args = 1.., required = true)]
    inputs: Vec<PathBuf>,

    /// Folder for the label maps; created if missing.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Also write the mean probabilities.
    #[arg(long)]
    save_npz: bool,

    /// dataset.json of the dataset [default: dataset.json in the first folder].
    #[arg(long, value_name = "FILE")]
    dataset_json: Option<PathBuf>,
}

impl Ensemble {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let options = EnsembleOptions { dataset_json: self.dataset_json, save_probabilities: self.save_npz };
        let inputs = self.inputs.iter().fold(Inputs::default(), |inputs, folder| inputs.with_folder(folder));
        inputs.check_same_names(&self.output)?;
        let _lock = FolderLock::acquire(&self.output, LOCK)?;
        let cases = ensemble::ensemble_folders(&self.inputs, &self.output, &options)?;
        outln!("{cases} cases in {}", self.output.display());
        Ok(())
    }
}
