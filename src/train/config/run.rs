//! The resolved configuration of a training run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layer::Layer;
use super::{TelemetryConfig, defaults};
use nnunet_comm::distributed::CommDtype;
use nnunet_core::fsio;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::loader::{Oversampling, Shard};
use nnunet_data::work::{ConfigError, FoldId, RunDir, one_line};
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
    /// Dice and the cross-entropy of the hardest voxels; only for classes, not regions.
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
    /// Applies `plans`, `file` and `flags` on top of the defaults, in this order, and validates the result.
    ///
    /// # Errors
    /// Returns an error in one line that names the layer and the key if a key is unknown or a value has the wrong type
    /// or is out of range.
    pub fn resolve(plans: Layer, file: Option<Layer>, flags: Layer) -> Result<Self, ConfigError> {
        let layers: Vec<&Layer> = [&plans].into_iter().chain(&file).chain([&flags]).collect();
        let mut table =
            defaults::table(stated(&layers, "optimizer.kind"), stated(&layers, "device"), stated(&layers, "precision"));
        let mut config = None;
        for layer in layers {
            layer.apply_to(&mut table)?;
            let resolved: Self = table
                .clone()
                .try_into()
                .map_err(|error: toml::de::Error| ConfigError::new(layer.origin(), one_line(&error.to_string())))?;
            resolved.validate().map_err(|defect| ConfigError::new(layer.origin(), defect))?;
            config = Some(resolved);
        }
        let config = config.ok_or_else(|| ConfigError::new("configuration", "no configuration layer given"))?;
        let misfit = |defect| ConfigError::new("configuration", format!("`precision` {defect}"));
        config.precision.check(config.device).map_err(misfit)?;
        Ok(config)
    }

    /// Reads the `config.toml` of a run.
    ///
    /// # Errors
    /// Same as [`RunConfig::resolve`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::resolve(Layer::default(), Some(Layer::from_file(path)?), Layer::default())
    }

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

/// Returns the value of a key from the highest layer that sets it; other defaults depend on these keys.
fn stated<T: for<'de> Deserialize<'de>>(layers: &[&Layer], key: &str) -> Option<T> {
    // A value that is not a `T` is reported when its layer is applied.
    layers.iter().rev().find_map(|layer| layer.get(key)).and_then(|value| value.clone().try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Layer {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my.toml");
        std::fs::write(&path, text).unwrap();
        Layer::from_file(&path).unwrap()
    }

    fn resolve(text: &str) -> Result<RunConfig, ConfigError> {
        RunConfig::resolve(Layer::new("plans"), Some(file(text)), Layer::new("flags"))
    }

    fn defect(text: &str) -> String {
        let message = resolve(text).unwrap_err().to_string();
        assert!(message.contains("my.toml: ") && !message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn each_layer_overrides_the_one_before() {
        let mut plans = Layer::new("plans");
        plans.set("training.batch_size", Some(9));
        let mut flags = Layer::new("flags");
        flags.set("training.epochs", Some(3)).set("seed", None::<i64>);
        let text = "seed = 7\nfold = 3\n[training]\nepochs = 10\niterations_per_epoch = 20\n";
        let config = RunConfig::resolve(plans, Some(file(text)), flags).unwrap();
        let TrainingConfig { epochs, iterations_per_epoch, validation_iterations, batch_size, .. } = config.training;
        assert_eq!((epochs, iterations_per_epoch, validation_iterations, batch_size), (3, 20, 50, 9));
        assert_eq!((config.seed, config.fold), (7, FoldId::Number(3)));
    }

    #[test]
    fn the_optimizer_brings_its_own_defaults_unless_they_are_stated() {
        assert_eq!(resolve("").unwrap().optimizer, OptimizerConfig::default_of(OptimizerKind::Sgd));
        let adam = resolve("optimizer = { kind = 'adam', weight_decay = 0 }").unwrap().optimizer;
        assert_eq!((adam.kind, adam.lr, adam.weight_decay), (OptimizerKind::Adam, 3e-4, 0.0));
    }

    #[test]
    fn gpus_exchange_what_they_compute_in_unless_told_otherwise() {
        let comm_dtype = |text: &str| resolve(text).unwrap().dist.compression;
        assert_eq!(comm_dtype("precision = 'amp-bf16'"), CommDtype::F32);
        assert_eq!(comm_dtype("precision = 'amp-bf16'\ndevice = 'cuda'"), CommDtype::Bf16);
        assert_eq!(comm_dtype("precision = 'amp-fp16'\ndevice = 'cuda'"), CommDtype::F16);
        assert_eq!(comm_dtype("precision = 'amp-fp16'\ndevice = 'cuda'\n[dist]\ncompression = 'none'"), CommDtype::F32);
    }

    #[test]
    fn errors_name_file_and_key() {
        assert!(defect("[optimizer]\nmomentun = 0.9").contains("unknown key `optimizer.momentun`"));
        assert!(defect("epochs = 3").contains("unknown key `epochs`"));
        assert!(defect("[training]\nepochs = 'ten'").contains("`training.epochs` must be of type integer"));
        assert!(defect("[training]\nepochs = 0").contains("`training.epochs` is 0"));
        assert!(defect("[training]\nepochs = -1").contains("training.epochs"));
        assert!(defect("[optimizer]\nlr = nan").contains("`optimizer.lr` is NaN"));
        assert!(defect("precision = 'fp8'").contains("precision"));
        let misfit = |text: &str| resolve(text).unwrap_err().to_string();
        assert!(misfit("precision = 'amp-fp16'").contains("`precision` amp-fp16 requires a GPU"));
        assert!(resolve("precision = 'amp-fp16'\ndevice = 'cuda'").is_ok());
        assert!(defect("fold = 'none'").contains("not `none`"));
    }

    #[test]
    fn a_saved_configuration_reads_back_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let mut flags = Layer::new("flags");
        flags.set("run_dir", Some(directory.path().display().to_string())).set("fold", Some("all"));
        let config = RunConfig::resolve(Layer::new("plans"), None, flags).unwrap();
        config.save().unwrap();
        assert_eq!(RunConfig::load(&config.run_dir().config()).unwrap(), config);
    }
}
