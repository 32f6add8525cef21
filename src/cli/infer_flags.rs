//! Inference flags shared by `predict` and `serve`: networks, windows and device.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::plans::PlansFlag;
use super::precision::PrecisionFlags;
use nnunet_data::work::{FoldId, WorkDir};
use nnunet_infer::{
    AccumulatorDtype, Blend, CheckpointName, DEFAULT_FOLDS, MemoryOptions, PredictOptions, WindowOptions,
    find_checkpoints,
};
use nnunet_nn::Device;

/// Networks, windows and device.
#[derive(Debug, Args)]
pub struct InferFlags {
    #[command(flatten)]
    model: ModelFlags,

    /// Disable test-time mirroring: up to 8 times faster.
    #[arg(long, visible_alias = "disable-tta", alias = "disable_tta")]
    no_tta: bool,

    /// Overlap of neighboring windows as a fraction of the window size, 0 to below 1.
    #[arg(long, value_name = "PART", default_value_t = 0.5, value_parser = overlap)]
    overlap: f64,

    /// Distance between neighboring windows as a fraction of the window size, above 0 to 1, as in nnU-Net [default: 1 -
    /// overlap].
    #[arg(long, alias = "step_size", value_name = "PART", conflicts_with = "overlap", value_parser = step_size)]
    step_size: Option<f64>,

    /// Weights of the voxels within a window.
    #[arg(long, value_enum, default_value_t = BlendName::Gaussian)]
    blend: BlendName,

    /// Windows, mirrored ones included, per forward call of the network [default: automatic].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,

    /// Data type in which the logits of overlapping windows are accumulated.
    #[arg(long, value_enum, default_value = "f32")]
    accumulator_dtype: AccumulatorDtype,

    /// Memory limit in GiB for the accumulated logits: the planes of one window times the classes. Above the limit they
    /// are accumulated in half precision [default: no limit].
    #[arg(long, value_name = "GIB", value_parser = gibibytes)]
    max_memory: Option<u64>,

    #[command(flatten)]
    precision: PrecisionFlags,

    /// Compute device.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

/// Selection of the networks.
#[derive(Debug, Args)]
struct ModelFlags {
    /// Run directories of `train`, checkpoints, or folders of runs (fold_0, fold_1, …); the logits of all their
    /// networks are averaged [default: the runs of --work].
    #[arg(short, long, value_name = "DIR", num_args = 1.., required_unless_present = "work", conflicts_with = "work")]
    run: Vec<PathBuf>,

    /// Work folder with the runs of --configuration to use [default: the runs given with --run].
    #[arg(short, long, value_name = "DIR", requires = "configuration")]
    work: Option<PathBuf>,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configuration of the plans: 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres [default: that of --run].
    #[arg(short, long, value_name = "NAME", requires = "work")]
    configuration: Option<String>,

    /// Folds to use, from --work or from a folder of runs [default: 0 1 2 3 4].
    #[arg(short, long = "fold", value_name = "FOLD|all", num_args = 1..)]
    folds: Vec<FoldId>,

    /// Checkpoint to load.
    #[arg(long, visible_alias = "chk", value_enum, default_value_t = CheckpointName::Latest)]
    checkpoint: CheckpointName,
}

/// Weighting of the voxels of a window.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum BlendName {
    /// Gaussian with a sigma of 1/8 of the window size: the center has the highest weight.
    Gaussian,
    /// Equal weights.
    Constant,
}

pub(super) fn gibibytes(text: &str) -> Result<u64, String> {
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

fn step_size(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if part > 0.0 && part <= 1.0 => Ok(part),
        _ => Err("must be a number above 0, at most 1".into()),
    }
}

impl ModelFlags {
    fn checkpoints(&self) -> anyhow::Result<Vec<PathBuf>> {
        let (models, folds) = match (&self.work, &self.configuration) {
            (Some(work), Some(configuration)) => {
                let folds = if self.folds.is_empty() { &DEFAULT_FOLDS } else { self.folds.as_slice() };
                (vec![self.plans.in_work(WorkDir::new(work)).runs(configuration)], folds)
            }
            _ => (self.run.clone(), self.folds.as_slice()),
        };
        Ok(find_checkpoints(&models, folds, self.checkpoint)?)
    }
}

impl InferFlags {
    /// Finds the checkpoints of a cascade's first stage in `models`, with the same folds and checkpoint name as for the
    /// second stage. Returns an empty list if `models` is empty.
    pub(super) fn previous_stage_checkpoints(&self, models: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
        match models.is_empty() {
            true => Ok(Vec::new()),
            false => Ok(find_checkpoints(models, &self.model.folds, self.model.checkpoint)?),
        }
    }

    /// Converts the flags to options.
    pub(super) fn options(&self) -> anyhow::Result<PredictOptions> {
        let blend = match self.blend {
            BlendName::Gaussian => Blend::Gaussian,
            BlendName::Constant => Blend::Constant,
        };
        let overlap = self.step_size.map_or(self.overlap, |step| 1.0 - step);
        Ok(PredictOptions {
            checkpoints: self.model.checkpoints()?,
            windows: WindowOptions { mirror: !self.no_tta, overlap, blend },
            memory: MemoryOptions {
                batch_size: self.batch_size.map(usize::from),
                accumulator_dtype: self.accumulator_dtype,
                limit: self.max_memory,
                ..MemoryOptions::on(self.device)
            },
            precision: self.precision.resolve(self.device)?,
            device: self.device,
        })
    }
}
