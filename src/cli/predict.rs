//! `nnunet-dist predict`

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::precision::PrecisionFlags;
use super::ranks::or_abort;
use crate::config::Device;
use crate::dist;
use crate::infer::{self, Accumulate, Blend, InferError, MemoryOptions, PredictOptions, WindowOptions};

/// Segment images with a trained network, in each image's own geometry.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist predict -r hippocampus/runs/3d_fullres/fold_0 -i imagesTs -o predictions
  mpirun -np 8 nnunet-dist predict -r hippocampus/runs/3d_fullres/fold_0 -i imagesTs -o predictions --device cuda
  nnunet-dist predict -r RUNS/3d_cascade_fullres/fold_0 --prev-stage RUNS/3d_lowres/fold_0 -i imagesTs -o predictions")]
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

    /// For the second stage of a cascade: folder with the first stage's label maps of the same images.
    #[arg(long, value_name = "DIR", conflicts_with = "prev_stage")]
    prev_stage_predictions: Option<PathBuf>,

    /// For the second stage of a cascade: run directory of the first, which then segments the images before, into
    /// OUTPUT/previous_stage.
    #[arg(long, value_name = "DIR")]
    prev_stage: Option<PathBuf>,

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

    /// Windows and their mirrorings per call of the network [default: as many as are of use].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,

    /// Precision in which the logits of overlapping windows are added up.
    #[arg(long, value_enum, default_value = "f32")]
    accumulate: Accumulate,

    /// GiB that the sums of the windows' logits may take: as many planes as a window has, times the classes. Where they
    /// would take more, they are kept in half precision [default: no limit].
    #[arg(long, value_name = "GIB", value_parser = gibibytes)]
    max_memory: Option<u64>,

    #[command(flatten)]
    precision: PrecisionFlags,

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

fn gibibytes(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok((number * (1u64 << 30) as f64) as u64),
        _ => Err("must be a number above 0".into()),
    }
}

pub(super) fn overlap(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok(part),
        _ => Err("must be a number from 0 to below 1".into()),
    }
}

impl Predict {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let checkpoint_of = |run: &Path| {
            PredictOptions::checkpoint_of(run, |run| match self.checkpoint {
                CheckpointName::Best => run.checkpoint_best(),
                CheckpointName::Latest => run.checkpoint_latest(),
            })
        };
        let blend = match self.blend {
            BlendName::Gaussian => Blend::Gaussian,
            BlendName::Constant => Blend::Constant,
        };
        let memory = MemoryOptions {
            batch_size: self.batch_size.map(usize::from),
            accumulate: self.accumulate,
            limit: self.max_memory,
            ..MemoryOptions::on(self.device)
        };
        let options = PredictOptions {
            checkpoint: checkpoint_of(&self.run),
            windows: WindowOptions { mirror: !self.no_tta, overlap: self.overlap, blend },
            memory,
            precision: self.precision.on(self.device)?,
            save_probabilities: self.save_probabilities,
            device: self.device,
            previous_stage: self.prev_stage_predictions.clone(),
        };
        let comm = dist::init()?;
        let predicted = match &self.prev_stage {
            Some(first) => {
                infer::predict_both_stages(&self.images, &self.output, checkpoint_of(first), &options, &*comm)
            }
            None => infer::predict_folder(&self.images, &self.output, &options, &*comm),
        };
        match predicted {
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
