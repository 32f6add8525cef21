//! Validation of configuration values.

use std::fmt;

use super::{OptimizerKind, RunConfig};
use nnunet_data::work::check_plans_name;

impl RunConfig {
    /// Checks every value against its range. The error is one line that names the key.
    pub(super) fn validate(&self) -> Result<(), String> {
        let Self { training, data, loss, optimizer, schedule, dist, telemetry, .. } = self;
        check_plans_name(&self.plans).map_err(|defect| format!("`plans`: {defect}"))?;
        telemetry.metrics_address().map_err(|defect| format!("`telemetry.metrics_addr` {defect}"))?;
        let at_least_one = [
            ("training.epochs", training.epochs),
            ("training.iterations_per_epoch", training.iterations_per_epoch),
            ("training.batch_size", training.batch_size),
            ("training.gradient_accumulation_steps", training.gradient_accumulation_steps),
            ("training.checkpoint_every", training.checkpoint_every),
            ("training.keep_checkpoints", training.keep_checkpoints),
            ("data.workers", data.workers),
            ("schedule.t_0", schedule.t_0),
        ];
        for (key, value) in at_least_one {
            require(value >= 1, key, value, "at least 1")?;
        }
        let unit = 0.0..=1.0;
        require(
            unit.contains(&data.oversample_foreground),
            "data.oversample_foreground",
            data.oversample_foreground,
            "0 to 1",
        )?;
        require(unit.contains(&schedule.peak_decay), "schedule.peak_decay", schedule.peak_decay, "0 to 1")?;
        require((0.0..1.0).contains(&optimizer.momentum), "optimizer.momentum", optimizer.momentum, "0 to below 1")?;
        require(optimizer.lr > 0.0 && optimizer.lr.is_finite(), "optimizer.lr", optimizer.lr, "above 0")?;
        require(
            loss.topk_percent > 0.0 && loss.topk_percent <= 100.0,
            "loss.topk_percent",
            loss.topk_percent,
            "above 0, and at most 100",
        )?;
        require((0.0..=10.0).contains(&loss.focal_gamma), "loss.focal_gamma", loss.focal_gamma, "0 to 10")?;
        if let Some(weight) = loss.class_weights.iter().find(|weight| !(0.0..=1e6).contains(*weight)) {
            require(false, "loss.class_weights", weight, "0 to 1e6 for each class")?;
        }
        if !loss.class_weights.is_empty() && !loss.kind.has_cross_entropy() {
            return Err("`loss.class_weights` requires a `loss.kind` with cross-entropy".into());
        }
        require(
            schedule.warmup_steps < training.epochs.saturating_mul(training.iterations_per_epoch),
            "schedule.warmup_steps",
            schedule.warmup_steps,
            "less than the total number of steps of the run",
        )?;
        let above_zero = [
            ("dist.bucket_mb", dist.bucket_mb),
            ("dist.timeout_s", dist.timeout_s),
            ("dist.first_timeout_s", dist.first_timeout_s),
        ];
        for (key, value) in above_zero {
            require(value > 0.0 && value <= 1e6, key, value, "above 0, and at most 1e6")?;
        }
        let not_negative = [
            ("optimizer.weight_decay", optimizer.weight_decay),
            ("optimizer.max_grad_norm", optimizer.max_grad_norm),
            ("schedule.power", schedule.power),
            ("data.cache_gb", data.cache_gb),
            ("schedule.min_lr", schedule.min_lr),
        ];
        for (key, value) in not_negative {
            require(value >= 0.0 && value.is_finite(), key, value, "0 or more")?;
        }
        require(
            !optimizer.nesterov || optimizer.momentum > 0.0 || optimizer.kind != OptimizerKind::Sgd,
            "optimizer.momentum",
            optimizer.momentum,
            "above 0 with optimizer.nesterov",
        )
    }
}

fn require(holds: bool, key: &str, value: impl fmt::Display, range: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("`{key}` is {value}; it must be {range}")) }
}
