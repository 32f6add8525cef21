//! The resolved configuration of a training run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layer::Layer;
use super::{TelemetryConfig, defaults};
use nnunet_comm::distributed::Wire;
use nnunet_core::fsio;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::loader::{Oversampling, Shard};
use nnunet_data::work::{ConfigError, FoldId, RunDir, one_line};
use nnunet_nn::Device;
use nnunet_nn::ops::Precision;
use nnunet_nn::optim::ScheduleConfig;
use serde::{Deserialize, Serialize};

/// Everything a training run is told, with no gaps: two runs of the same configuration and data are the same run.
///
/// In TOML the first seven are top-level keys, the rest sections. Defaults are nnU-Net v2's (`nnUNetTrainer.py`), and
/// with an optimiser of NVIDIA's nnU-Net its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the plans in the work folder.
    pub plans: String,
    /// Name of a configuration in the plans: `2d`, `3d_fullres`, `3d_lowres`, `3d_cascade_fullres`.
    pub configuration: String,
    /// Which cases are held out.
    pub fold: FoldId,
    /// Seed of every random draw.
    pub seed: u64,
    /// Where tensors are computed.
    pub device: Device,
    /// Number format of activations.
    pub precision: Precision,
    /// Give the lower-resolution decoder stages an output and a loss of their own.
    pub deep_supervision: bool,
    /// Folder of the run's results.
    pub run_dir: PathBuf,
    pub training: TrainingConfig,
    pub data: DataConfig,
    pub loss: LossConfig,
    pub optimizer: OptimizerConfig,
    pub schedule: ScheduleConfig,
    pub dist: DistConfig,
    /// Runs from before it was there can be read.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// How long, how much at a time, how often saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    pub epochs: usize,
    /// Optimiser steps per epoch, whatever the number of ranks.
    pub iterations_per_epoch: usize,
    /// Validation batches after each epoch; 0 turns the pseudo Dice off.
    pub validation_iterations: usize,
    /// Samples per rank and step; the plans' value unless overridden.
    pub batch_size: usize,
    /// Batches per rank whose gradients make one step.
    pub gradient_accumulation_steps: usize,
    /// Keep the activations between the network's stages only, and compute those within once more on the way back.
    pub gradient_checkpointing: bool,
    /// Epochs between two checkpoints.
    pub checkpoint_every: usize,
    /// How many of the newest checkpoints are kept, at least one.
    pub keep_checkpoints: usize,
    /// Epochs between two checkpoints that are kept for ever; 0 for none.
    pub keep_every: usize,
    /// What is done when loss or gradient are no numbers.
    pub on_nan: OnNan,
    /// Weights to begin with, see [`nnunet_interop::load_pretrained`]; empty for random ones.
    pub pretrained_weights: PathBuf,
}

/// Where samples come from and what is done to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Part of the global batch whose patches are centred on foreground, `0..=1`.
    pub oversample_foreground: f64,
    /// Which samples those are.
    pub oversampling: Oversampling,
    pub augmentation: AugmentationPreset,
    /// Loader threads per rank.
    pub workers: usize,
    /// Which case each sample takes.
    pub shard: Shard,
    /// GB of cases that each rank keeps in memory; 0 for none.
    pub cache_gb: f64,
    /// Folder on a local disk of each host for copies of the cases; empty for none.
    pub local_cache_dir: PathBuf,
    /// For the second stage of a cascade: run directories of the first; empty for all in the work folder.
    pub previous_stage: Vec<PathBuf>,
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    pub kind: LossKind,
    /// Dice over the whole batch (of all ranks) instead of per sample; the plans' value unless overridden.
    pub batch_dice: bool,
    /// Give the background a part in the Dice and in the focal loss of classes.
    pub include_background: bool,
    /// Percentage of the voxels whose cross-entropies count with `dice_topk`.
    pub topk_percent: f64,
    /// Exponent of `dice_focal`.
    pub focal_gamma: f64,
    /// Factor of the cross-entropy per class, background first; empty for none.
    pub class_weights: Vec<f64>,
}

/// How ranks work together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistConfig {
    /// Size of a bucket of gradients in MiB of f32.
    pub bucket_mb: f64,
    /// Format of gradients on the wire.
    pub compression: Wire,
    /// Send each bucket as soon as it is full, rather than all after the backward pass.
    pub overlap: bool,
    /// Seconds that a collective may take.
    pub timeout_s: f64,
    /// Seconds that a collective may take up to the end of the first step: ranks start and tune at different speeds.
    pub first_timeout_s: f64,
    /// Steps between two comparisons of the weights of all ranks; 0: never.
    pub weight_check_interval: usize,
}

/// The optimiser and its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    pub kind: OptimizerKind,
    /// Initial learning rate.
    pub lr: f64,
    pub weight_decay: f64,
    /// Momentum of SGD, `0..1`; the others do not use it.
    pub momentum: f64,
    /// Nesterov's form of SGD's momentum.
    pub nesterov: bool,
    /// Slow weights that follow the optimiser's (`nnunet_nn::optim::Lookahead`).
    pub lookahead: bool,
    /// Largest L2 norm of all gradients together; 0 turns clipping off.
    pub max_grad_norm: f64,
}

/// What a run does when loss or gradient are no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum OnNan {
    /// End, with an error that names the cases.
    Stop,
    /// Leave the step out and go on: 20 times in a row at most.
    Skip,
    /// Go back to the last checkpoint, and on from there with other samples: three times at most.
    Rollback,
}

/// Update rule of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum: nnU-Net v2's.
    Sgd,
    /// Adam: NVIDIA's nnU-Net's.
    Adam,
    /// Adam with the weight decay apart from the gradient (Loshchilov and Hutter 2019).
    Adamw,
    /// Adam with rectified first steps (Liu et al. 2020).
    Radam,
}

/// What the loss is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "clap", value(rename_all = "snake_case"))]
pub enum LossKind {
    /// Dice and cross-entropy: nnU-Net's.
    DiceCe,
    /// Dice and the cross-entropy of the hardest voxels; for classes only.
    DiceTopk,
    /// Dice and focal loss: NVIDIA's nnU-Net with `--focal`.
    DiceFocal,
    /// Cross-entropy alone.
    Ce,
    /// Dice alone.
    Dice,
}

impl LossKind {
    /// Whether classes can be weighted in it.
    pub fn has_cross_entropy(self) -> bool {
        matches!(self, Self::DiceCe | Self::DiceTopk | Self::Ce)
    }
}

impl RunConfig {
    /// Lays `plans`, `file` and `flags` over the defaults, later ones first, and validates the result.
    ///
    /// # Errors
    /// One line that names the layer and the key: unknown, of the wrong type, or out of its range.
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
        let config = config.ok_or_else(|| ConfigError::new("configuration", "no layer given"))?;
        let misfit = |defect| ConfigError::new("configuration", format!("`precision` {defect}"));
        config.precision.check(config.device).map_err(misfit)?;
        Ok(config)
    }

    /// Reads the `config.toml` of a run.
    ///
    /// # Errors
    /// As [`RunConfig::resolve`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::resolve(Layer::default(), Some(Layer::from_file(path)?), Layer::default())
    }

    /// Writes `config.toml` into the run's folder, if it has another or none: one that goes on needs no room on the disk.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let (path, text) = (self.run_dir().config(), self.to_toml());
        match fs::read(&path) {
            Ok(there) if there == text.as_bytes() => Ok(()),
            _ => fsio::write_bytes(&path, text.as_bytes()),
        }
    }

    /// The configuration as it is printed and saved.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a struct of numbers, strings and tables is always valid TOML")
    }

    /// The files of this run.
    pub fn run_dir(&self) -> RunDir {
        RunDir::new(&self.run_dir)
    }
}

/// The uppermost statement of a key that other defaults depend on.
fn stated<T: for<'de> Deserialize<'de>>(layers: &[&Layer], key: &str) -> Option<T> {
    // A value that is no `T` is reported when its layer is applied.
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
        let wire = |text: &str| resolve(text).unwrap().dist.compression;
        assert_eq!(wire("precision = 'amp-bf16'"), Wire::F32);
        assert_eq!(wire("precision = 'amp-bf16'\ndevice = 'cuda'"), Wire::Bf16);
        assert_eq!(wire("precision = 'amp-fp16'\ndevice = 'cuda'"), Wire::F16);
        assert_eq!(wire("precision = 'amp-fp16'\ndevice = 'cuda'\n[dist]\ncompression = 'none'"), Wire::F32);
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
