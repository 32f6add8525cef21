//! Default configuration: nnU-Net v2's values, and the values of NVIDIA's nnU-Net for its optimizers.

use std::path::PathBuf;

use toml::{Table, Value};

use super::{
    DataConfig, DistConfig, LossConfig, LossKind, OnNan, OptimizerConfig, OptimizerKind, RunConfig, TelemetryConfig,
    TrainingConfig,
};
use nnunet_comm::distributed::CommDtype;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::loader::{Oversampling, Shard};
use nnunet_data::work::{DEFAULT_PLANS, FoldId};
use nnunet_nn::Device;
use nnunet_nn::ops::Precision;
use nnunet_nn::optim::{ScheduleConfig, ScheduleKind};

/// Returns all keys with their defaults, which depend on the given values.
pub(super) fn table(optimizer: Option<OptimizerKind>, device: Option<Device>, precision: Option<Precision>) -> Table {
    let device = device.unwrap_or(Device::Cpu);
    let config = RunConfig {
        plans: DEFAULT_PLANS.into(),
        configuration: "3d_fullres".into(),
        fold: FoldId::Number(0),
        seed: 1234,
        device,
        precision: Precision::Fp32,
        deep_supervision: true,
        run_dir: PathBuf::from("."),
        training: TrainingConfig {
            epochs: 1000,
            iterations_per_epoch: 250,
            validation_iterations: 50,
            batch_size: 2,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            checkpoint_every: 10,
            keep_checkpoints: 2,
            keep_every: 0,
            on_nan: OnNan::Stop,
            pretrained_weights: PathBuf::new(),
        },
        data: DataConfig {
            oversample_foreground: 0.33,
            oversampling: Oversampling::Deterministic,
            augmentation: AugmentationPreset::Nnunet,
            // On the CPU the loader shares the cores with the network.
            workers: if device == Device::Cuda { 8 } else { 2 },
            shard: Shard::Random,
            cache_gb: 0.0,
            local_cache_dir: PathBuf::new(),
            previous_stage: Vec::new(),
        },
        loss: LossConfig {
            kind: LossKind::DiceCe,
            batch_dice: true,
            include_background: false,
            topk_percent: 10.0,
            focal_gamma: 2.0,
            class_weights: Vec::new(),
        },
        optimizer: OptimizerConfig::default_of(optimizer.unwrap_or(OptimizerKind::Sgd)),
        schedule: ScheduleConfig {
            kind: ScheduleKind::Poly,
            warmup_steps: 0,
            power: 0.9,
            min_lr: 5e-5,
            t_0: 4096,
            peak_decay: 0.95,
        },
        dist: DistConfig {
            bucket_mb: 2.0,
            compression: default_comm_dtype(device, precision.unwrap_or_default()),
            overlap: true,
            timeout_s: 300.0,
            first_timeout_s: 1200.0,
            weight_check_interval: 250,
        },
        telemetry: TelemetryConfig::default(),
    };
    match Value::try_from(config) {
        Ok(Value::Table(table)) => table,
        other => unreachable!("a configuration is a table of plain values: {other:?}"),
    }
}

/// Returns the default transfer format of gradients. GPUs exchange gradients in the precision of the computation; in
/// host memory, rounding would be extra work.
fn default_comm_dtype(device: Device, precision: Precision) -> CommDtype {
    match (device, precision) {
        (Device::Cuda, Precision::AmpBf16) => CommDtype::Bf16,
        (Device::Cuda, Precision::AmpFp16) => CommDtype::F16,
        _ => CommDtype::F32,
    }
}

impl OptimizerConfig {
    /// Returns the published constants of each kind: nnU-Net v2's for SGD and AdamW (`nnUNetTrainerAdam3en4`), NVIDIA's
    /// nnU-Net's for Adam and RAdam.
    pub fn default_of(kind: OptimizerKind) -> Self {
        let (lr, weight_decay) = match kind {
            OptimizerKind::Sgd => (1e-2, 3e-5),
            OptimizerKind::Adamw => (3e-4, 3e-5),
            OptimizerKind::Adam | OptimizerKind::Radam => (3e-4, 1e-4),
        };
        Self { kind, lr, weight_decay, momentum: 0.99, nesterov: true, lookahead: false, max_grad_norm: 12.0 }
    }
}
