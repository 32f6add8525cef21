//! Command-line flags of a training run: optimization, monitoring, data and distribution.

use std::path::{Path, PathBuf};

use clap::Args;
use nnunet_comm::distributed::CommDtype;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::loader::{Oversampling, Shard};
use nnunet_data::work::{FoldId, WorkDir, check_plans_name};
use nnunet_nn::Device;
use nnunet_nn::optim::ScheduleKind;
use nnunet_train::config::{Layer, LossKind, OnNan, OptimizerKind, RunConfig};

use super::plans::PlansFlag;
use super::precision::PrecisionFlags;
use super::{name_of, plans};

/// Loss, optimizer and augmentation.
#[derive(Debug, Args)]
#[command(next_help_heading = "Optimization")]
pub struct ObjectiveFlags {
    /// Loss function [default: dice_ce].
    #[arg(long, value_enum, value_name = "KIND")]
    loss: Option<LossKind>,

    /// Compute the Dice loss over the whole batch (true) or per sample (false) [default: the plans'].
    #[arg(long, value_name = "BOOL")]
    batch_dice: Option<bool>,

    /// Include the background in the Dice and focal losses.
    #[arg(long)]
    include_background: bool,

    /// Optimizer [default: sgd].
    #[arg(long, value_enum, value_name = "KIND")]
    optimizer: Option<OptimizerKind>,

    /// Wrap the optimizer in Lookahead with slow weights (Zhang et al. 2019).
    #[arg(long)]
    lookahead: bool,

    /// Initial learning rate [default: 0.01 for sgd, 0.0003 for others].
    #[arg(long, value_name = "X", value_parser = super::positive)]
    lr: Option<f64>,

    /// Learning rate schedule [default: poly].
    #[arg(long, value_enum, value_name = "KIND")]
    scheduler: Option<ScheduleKind>,

    /// Warm-up steps in which the learning rate increases [default: 0].
    #[arg(long, value_name = "N")]
    warmup_steps: Option<u32>,

    /// Augmentation preset for training patches [default: nnunet].
    #[arg(long, value_enum, value_name = "PRESET")]
    augment: Option<AugmentationPreset>,

    /// Samples to center on foreground: the last ones of each batch, or each at random [default: deterministic].
    #[arg(long, value_enum, value_name = "HOW")]
    oversampling: Option<Oversampling>,
}

impl ObjectiveFlags {
    pub(super) fn add_to(&self, layer: &mut Layer) {
        layer
            .set("loss.kind", name_of(self.loss))
            .set("loss.batch_dice", self.batch_dice)
            .set("loss.include_background", self.include_background.then_some(true))
            .set("optimizer.kind", name_of(self.optimizer))
            .set("optimizer.lookahead", self.lookahead.then_some(true))
            .set("optimizer.lr", self.lr)
            .set("schedule.kind", name_of(self.scheduler))
            .set("schedule.warmup_steps", self.warmup_steps)
            .set("data.augmentation", name_of(self.augment))
            .set("data.oversampling", name_of(self.oversampling));
    }
}

/// Monitoring of a run beyond the files that it always writes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Monitoring")]
pub struct TelemetryFlags {
    /// Address of the Prometheus metrics endpoint; each process of a host uses the next port. A port without an address
    /// binds to the loopback interface [default: none].
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    metrics_addr: Option<String>,

    /// Also write TensorBoard event files into the folder `tensorboard` of the run directory.
    #[arg(long)]
    tensorboard: bool,
}

impl TelemetryFlags {
    pub(super) fn add_to(&self, layer: &mut Layer) {
        layer
            .set("telemetry.metrics_addr", self.metrics_addr.clone())
            .set("telemetry.tensorboard", self.tensorboard.then_some(true));
    }
}

/// Settings of a run.
#[derive(Debug, Args)]
pub struct RunFlags {
    /// Work folder created by `plan` and `preprocess`.
    #[arg(short, long, value_name = "DIR")]
    work: PathBuf,

    #[command(flatten)]
    plans: PlansFlag,

    /// Configuration of the plans: 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres.
    #[arg(short, long, value_name = "NAME")]
    configuration: String,

    /// Fold whose validation cases are held out, from 0; `all` trains and validates on every case.
    #[arg(short, long, value_name = "FOLD|all")]
    fold: FoldId,

    /// Number of epochs [default: 1000].
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,

    /// Optimizer steps per epoch, independent of the number of processes [default: 250].
    #[arg(long, value_name = "N")]
    iters_per_epoch: Option<u32>,

    /// Validation batches after each epoch [default: 50].
    #[arg(long, value_name = "N")]
    val_iters: Option<u32>,

    /// Samples per process and step [default: the plans'].
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,

    /// Random seed [default: 1234].
    #[arg(long, value_name = "N")]
    seed: Option<u32>,

    /// Assignment of cases to samples [default: random].
    #[arg(long, value_enum, value_name = "ORDER")]
    shard: Option<Shard>,

    /// Memory in GB per process for caching preprocessed cases [default: 0].
    #[arg(long, value_name = "GB")]
    cache_gb: Option<f64>,

    /// Folder on a local disk of each host for copies of the preprocessed cases [default: none].
    #[arg(long, value_name = "DIR")]
    local_cache_dir: Option<PathBuf>,

    /// For the second stage of a cascade: run directories of the first stage with the segmentations of their held-out
    /// cases [default: all in WORK/runs].
    #[arg(long, value_name = "DIR", num_args = 1..)]
    prev_stage: Option<Vec<PathBuf>>,

    /// Compute device [default: cpu].
    #[arg(long, value_enum, value_name = "DEVICE")]
    device: Option<Device>,

    #[command(flatten)]
    precision: PrecisionFlags,

    /// Recompute activations in the backward pass: uses less memory, steps take a third longer.
    #[arg(long)]
    gradient_checkpointing: bool,

    /// Action when the loss or gradient is NaN or infinite [default: stop].
    #[arg(long, value_enum, value_name = "POLICY")]
    on_nan: Option<OnNan>,

    /// TOML file with settings; flags override it.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,

    /// Run directory for the results [default: WORK/runs/CONFIGURATION/fold_FOLD; with other plans than nnUNetPlans,
    /// WORK/runs/PLANS__CONFIGURATION/fold_FOLD].
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,

    #[command(flatten)]
    objective: ObjectiveFlags,

    #[command(flatten)]
    dist: DistributedFlags,

    #[command(flatten)]
    telemetry: TelemetryFlags,
}

/// Distributed training.
#[derive(Debug, Args)]
#[command(next_help_heading = "Distributed training")]
struct DistributedFlags {
    /// Batches per process to accumulate for one optimizer step [default: 1].
    #[arg(long, value_name = "N")]
    gradient_accumulation_steps: Option<u32>,

    /// Gradient bucket size in MiB [default: 2].
    #[arg(long, value_name = "MB", value_parser = super::positive)]
    bucket_mb: Option<f64>,

    /// Data type of gradients in the all-reduce [default: none; with --device cuda that of --precision].
    #[arg(long, value_enum, value_name = "FORMAT")]
    grad_compression: Option<CommDtype>,

    /// Exchange gradients after the backward pass instead of overlapping it.
    #[arg(long)]
    no_overlap: bool,

    /// Seconds after which a collective fails, unless the rank it waits for is still working [default: 300, before the
    /// first step 1200].
    #[arg(long, value_name = "S", value_parser = super::positive)]
    comm_timeout: Option<f64>,

    /// Steps between two checks that all processes have equal weights; 0 disables them [default: 250].
    #[arg(long, value_name = "N")]
    weight_check_interval: Option<u32>,
}

impl DistributedFlags {
    fn add_to(&self, layer: &mut Layer) {
        layer
            .set("training.gradient_accumulation_steps", self.gradient_accumulation_steps)
            .set("dist.bucket_mb", self.bucket_mb)
            .set("dist.compression", name_of(self.grad_compression))
            .set("dist.overlap", self.no_overlap.then_some(false))
            .set("dist.timeout_s", self.comm_timeout)
            .set("dist.weight_check_interval", self.weight_check_interval);
    }
}

impl RunFlags {
    /// Returns the work folder.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Merges defaults, plans, file and flags.
    ///
    /// # Errors
    /// Returns an error if the plans or the file are missing or invalid, or if a value is out of range.
    pub(super) fn resolve(&self, work: &WorkDir) -> anyhow::Result<RunConfig> {
        let file = self.config.as_deref().map(Layer::from_file).transpose()?;
        let in_file = file.as_ref().and_then(|file| file.get("plans")?.as_str());
        // An invalid plans name is reported with its layer below.
        let in_file = in_file.filter(|name| self.plans.plans.is_none() && check_plans_name(name).is_ok());
        let work = self.plans.in_work(in_file.map_or_else(|| work.clone(), |name| work.clone().with_plans(name)));
        let plans = plans::load(&work)?;
        let mut layer = Layer::new(work.plans().display().to_string());
        let configuration = plans.configuration(&self.configuration)?;
        let batch_size = i64::try_from(configuration.batch_size)?;
        let run_dir = work.run(&self.configuration, self.fold);
        layer.set("loss.batch_dice", Some(configuration.batch_dice)).set("training.batch_size", Some(batch_size));
        layer.set("run_dir", Some(run_dir.root().display().to_string()));
        let mut flags = self.flags();
        let device = flags.get("device").or_else(|| file.as_ref()?.get("device"));
        let device = device.and_then(|name| name.clone().try_into().ok()).unwrap_or(Device::Cpu);
        flags.set("precision", name_of(self.precision.requested(device)));
        Ok(RunConfig::resolve(layer, file, flags)?)
    }

    /// Collects the settings given as flags.
    fn flags(&self) -> Layer {
        let mut layer = Layer::new("command line");
        layer
            .set("plans", self.plans.plans.clone())
            .set("configuration", Some(self.configuration.clone()))
            .set("fold", Some(self.fold.to_string()))
            .set("seed", self.seed)
            .set("device", name_of(self.device))
            .set("data.shard", name_of(self.shard))
            .set("data.cache_gb", self.cache_gb)
            .set("data.local_cache_dir", self.local_cache_dir.as_ref().map(|path| path.display().to_string()))
            .set("data.previous_stage", self.prev_stage.as_ref().map(|runs| path_strings(runs)))
            .set("run_dir", self.run_dir.as_ref().map(|path| path.display().to_string()))
            .set("training.epochs", self.epochs)
            .set("training.iterations_per_epoch", self.iters_per_epoch)
            .set("training.validation_iterations", self.val_iters)
            .set("training.batch_size", self.batch_size)
            .set("training.on_nan", name_of(self.on_nan))
            .set("training.gradient_checkpointing", self.gradient_checkpointing.then_some(true));
        self.objective.add_to(&mut layer);
        self.dist.add_to(&mut layer);
        self.telemetry.add_to(&mut layer);
        layer
    }
}

/// Formats paths for TOML.
fn path_strings(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}
