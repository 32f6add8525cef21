//! `nnunet-dist predict`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ranks::or_abort;
use crate::config::Device;
use crate::dist;
use crate::infer::{self, Blend, InferError, PredictOptions, WindowOptions};

/// Segment images with a trained network, in each image's own geometry.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist predict -r hippocampus/runs/3d_fullres/fold_0 -i imagesTs -o predictions
  mpirun -np 8 nnunet-dist predict -r hippocampus/runs/3d_fullres/fold_0 -i imagesTs -o predictions --device cuda")]
pub struct Predict {
    /// Run directory of `train`, or a model folder.
    #[arg(short, long, value_name = "DIR")]
    run: PathBuf,

    /// Folder of images, one file per case and channel: CASE_0000.nii.gz, CASE_0001.nii.gz.
    #[arg(short, long, value_name = "DIR")]
    images: PathBuf,

    /// Folder for the label maps; created where missing.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Which weights.
    #[arg(long, value_enum, default_value_t = CheckpointName::Latest)]
    checkpoint: CheckpointName,

    /// Predict the image as it is only, not its mirrorings too (test-time augmentation): up to 8 times faster.
    #[arg(long)]
    no_tta: bool,

    /// Part of the window by which neighbours overlap, 0 to below 1.
    #[arg(long, value_name = "PART", default_value_t = 0.5, value_parser = overlap)]
    overlap: f64,

    /// Weight of a voxel within its window.
    #[arg(long, value_enum, default_value_t = BlendName::Gaussian)]
    blend: BlendName,

    /// Write the class probabilities beside each label map.
    #[arg(long)]
    save_probabilities: bool,

    /// Where tensors are computed.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

/// The checkpoints of a run.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CheckpointName {
    /// Best moving average of the pseudo Dice.
    Best,
    /// The newest.
    Latest,
}

/// Weights of a window's voxels.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum BlendName {
    /// Gaussian of sigma 1/8 of the window: the middle counts most.
    Gaussian,
    /// All alike.
    Constant,
}

fn overlap(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok(part),
        _ => Err("must be a number from 0 to below 1".into()),
    }
}

impl Predict {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let checkpoint = PredictOptions::checkpoint_of(&self.run, |run| match self.checkpoint {
            CheckpointName::Best => run.checkpoint_best(),
            CheckpointName::Latest => run.checkpoint_latest(),
        });
        let blend = match self.blend {
            BlendName::Gaussian => Blend::Gaussian,
            BlendName::Constant => Blend::Constant,
        };
        let options = PredictOptions {
            checkpoint,
            windows: WindowOptions { mirror: !self.no_tta, overlap: self.overlap, blend },
            save_probabilities: self.save_probabilities,
            device: self.device,
        };
        let comm = dist::init()?;
        match infer::predict_folder(&self.images, &self.output, &options, &*comm) {
            // All ranks know them; one tells.
            Err(InferError::Cases { .. }) if comm.rank() > 0 => Ok(()),
            predicted => {
                let cases = or_abort(predicted.map_err(anyhow::Error::from), &*comm)?;
                if comm.rank() == 0 {
                    println!("{cases} cases in {}", self.output.display());
                }
                Ok(())
            }
        }
    }
}
