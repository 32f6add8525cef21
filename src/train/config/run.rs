//! The resolved configuration of a training run.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::telemetry::TelemetryConfig;
use nnunet_comm::distributed::CommDtype;
use nnunet_core::fsio;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::loader::{Oversampling, Shard};
use nnunet_data::work::{FoldId, RunDir};
use nnunet_nn::Device;
use nnunet_nn::ops::Precision;
use nnunet_nn::optim::ScheduleConfig;
use serde::{Deserialize, Serialize};

/// Complete configuration of a training run. Two runs with the same configuration and data give the same result.
///
/// In TOML, the scalar fields are top-level keys and the other fields are sections. Defaults are nnU-Net v2's
/// (`nnUNetTrainer.py`), or the constants of NVIDIA's nnU-Net for its optimizers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the plans in the work folder.
    pub plans: String,
    /// Name of a configuration in the plans: `2d`, `3d_fullres`, `3d_lowres`, `3d_cascade_fullres`.
    pub configuration: String,
    /// Held-out cases.
    pub fold: FoldId,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Compute device.
    pub device: Device,
    /// Number format of activations.
    pub precision: Precision,
    /// Deep supervision: give the lower-resolution decoder stages their own output and loss.
    pub deep_supervision: bool,
    /// Folder for the results of the run.
    pub run_dir: PathBuf,
    pub training: TrainingConfig,
    pub data: DataConfig,
    pub loss: LossConfig,
    pub optimizer: OptimizerConfig,
    pub schedule: ScheduleConfig,
    pub dist: DistConfig,
    /// Optional in the file, so that the configurations of older runs can be read.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// Duration, batch size and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    pub epochs: usize,
    /// Optimizer steps per epoch, independent of the number of ranks.
    pub iterations_per_epoch: usize,
    /// Validation batches after each epoch; 0 disables the pseudo Dice.
    pub validation_iterations: usize,
    /// Samples per rank and step; defaults to the plans' value.
    pub batch_size: usize,
    /// Gradient accumulation: batches per rank and optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Keep only the activations between the stages of the network, and recompute the others in the backward pass.
    pub gradient_checkpointing: bool,
    /// Epochs between two checkpoints.
    pub checkpoint_every: usize,
    /// Number of newest checkpoints to keep, at least one.
    pub keep_checkpoints: usize,
    /// Epochs between two checkpoints that are kept permanently; 0 for none.
    pub keep_every: usize,
    /// Action when the loss or gradient is NaN or infinite.
    pub on_nan: OnNan,
    /// Initial weights, see [`crate::interop::load_pretrained`]; empty for random initialization.
    pub pretrained_weights: PathBuf,
}

/// Sampling, loading and augmentation of training data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Fraction of the global batch whose patches are centered on foreground, `0..=1`.
    pub oversample_foreground: f64,
    /// Selection of the foreground samples.
    pub oversampling: Oversampling,
    pub augmentation: AugmentationPreset,
    /// Loader threads per rank.
    pub workers: usize,
    /// Assignment of cases to samples.
    pub shard: Shard,
    /// Size of each rank's in-memory case cache in GB; 0 for none.
    pub cache_gb: f64,
    /// Folder on a local disk of each host, used to cache copies of the cases; empty for none.
    pub local_cache_dir: PathBuf,
    /// Run directories of the first stage, for the second stage of a cascade; empty for all in the work folder.
    pub previous_stage: Vec<PathBuf>,
}

/// Loss function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    pub kind: LossKind,
    /// Compute Dice over the whole batch (of all ranks) instead of per sample; defaults to the plans' value.
    pub batch_dice: bool,
    /// Include the background in the Dice and in the focal loss of classes.
    pub include_background: bool,
    /// Percentage of the voxels with the highest cross-entropy that `dice_topk` uses.
    pub topk_percent: f64,
    /// Exponent gamma of `dice_focal`.
    pub focal_gamma: f64,
    /// Cross-entropy weight per class, background first; empty for none.
    pub class_weights: Vec<f64>,
}

/// Distributed training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistConfig {
    /// Size of a gradient bucket in MiB of f32.
    pub bucket_mb: f64,
    /// Transfer format of gradients.
    pub compression: CommDtype,
    /// Overlap communication with the backward pass: send each bucket as soon as it is full.
    pub overlap: bool,
    /// Timeout of a collective in seconds.
    pub timeout_s: f64,
    /// Timeout of a collective until the end of the first step, in seconds; longer because ranks start and tune kernels
    /// at different speeds.
    pub first_timeout_s: f64,
    /// Steps between two consistency checks of the weights over all ranks; 0 to disable.
    pub weight_check_interval: usize,
}

/// Optimizer and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    pub kind: OptimizerKind,
    /// Initial learning rate.
    pub lr: f64,
    pub weight_decay: f64,
    /// Momentum of SGD, `0..1`; ignored by other optimizers.
    pub momentum: f64,
    /// Use Nesterov momentum in SGD.
    pub nesterov: bool,
    /// Use Lookahead: slow weights that follow the optimizer's weights (`crate::optim::Lookahead`).
    pub lookahead: bool,
    /// Maximum L2 norm of all gradients together (gradient clipping); 0 to disable.
    pub max_grad_norm: f64,
}

/// Action when the loss or gradient is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// Stop with an error that names the cases.
    Stop,
    /// Skip the step and continue; at most 20 times in a row.
    Skip,
    /// Return to the last checkpoint and continue with different samples; at most three times for the same step.
    Rollback,
}

/// Optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum, as in nnU-Net v2.
    Sgd,
    /// Adam, as in NVIDIA's nnU-Net.
    Adam,
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    Adamw,
    /// Adam with a rectified adaptive learning rate (Liu et al. 2020).
    Radam,
}

/// Loss terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", value(rename_all = "snake_case"))]
pub enum LossKind {
    /// Dice and cross-entropy, as in nnU-Net.
    DiceCe,
    /// Dice and the cross-entropy of the largest per-voxel losses (top-k); only for classes, not regions.
    DiceTopk,
    /// Dice and focal loss, as in NVIDIA's nnU-Net with `--focal`.
    DiceFocal,
    /// Cross-entropy only.
    Ce,
    /// Dice only.
    Dice,
}

impl LossKind {
    /// Returns whether the loss contains a cross-entropy, so that classes can be weighted.
    pub fn has_cross_entropy(self) -> bool {
        matches!(self, Self::DiceCe | Self::DiceTopk | Self::Ce)
    }
}

impl RunConfig {
    /// Writes `config.toml` into the run's folder, unless it already has the same content: resuming needs no disk
    /// space.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let (path, text) = (self.run_dir().config(), self.to_toml());
        match fs::read(&path) {
            Ok(there) if there == text.as_bytes() => Ok(()),
            _ => fsio::write_bytes(&path, text.as_bytes()),
        }
    }

    /// Formats the configuration as TOML, for printing and saving.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a struct of numbers, strings and tables is always valid TOML")
    }

    /// Returns the folder of this run.
    pub fn run_dir(&self) -> RunDir {
        RunDir::new(&self.run_dir)
    }
}
