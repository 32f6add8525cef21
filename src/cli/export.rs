//! `nnunet-dist export`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::outln;
use nnunet_core::protect::Inputs;
use nnunet_infer::CheckpointName;
use nnunet_interop as interop;
use nnunet_nn::checkpoint::SavedModel;

/// Export a trained network for other programs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist export -r hippocampus/runs/3d_fullres/fold_0 --to pth -o nnUNetTrainer__nnUNetPlans__3d_fullres
  nnunet-dist export -r hippocampus/runs/3d_fullres/fold_0 --to onnx -o hippocampus.onnx")]
pub struct Export {
    /// Run directory of `train`, or a checkpoint.
    #[arg(short, long, value_name = "DIR")]
    run: PathBuf,

    /// Output format.
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Format,

    /// File to write; with --to pth the model folder, to which one fold per call is added.
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,

    /// Checkpoint to export.
    #[arg(long, value_enum, default_value_t = CheckpointName::Latest)]
    checkpoint: CheckpointName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Model folder of nnU-Net v2: plans.json, dataset.json, fold_X/checkpoint_final.pth.
    Pth,
    /// Weights with nnU-Net's names and a JSON header.
    Safetensors,
    /// ONNX graph of the network with its highest-resolution head.
    Onnx,
}

impl Export {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let checkpoint = self.checkpoint.path_in(&self.run);
        let inputs = Inputs::default().with_folder(&self.run).with_folder(&checkpoint);
        inputs.check(&self.output)?;
        inputs.check_same_names(&self.output)?;
        let model = SavedModel::read(&checkpoint)?;
        let written = match self.to {
            Format::Pth => interop::export(&model, fold_of(&checkpoint), &self.output)?,
            Format::Safetensors => interop::write_safetensors(&model, &self.output).map(|()| self.output)?,
            Format::Onnx => interop::write_onnx(&model, &self.output).map(|()| self.output)?,
        };
        outln!("{}", written.display());
        Ok(())
    }
}

/// Returns the fold in the name of the run directory, or 0.
fn fold_of(checkpoint: &Path) -> &str {
    let folder = checkpoint.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let fold = folder.and_then(|name| name.strip_prefix("fold_"));
    fold.filter(|fold| *fold == "all" || fold.parse::<u32>().is_ok()).unwrap_or("0")
}
