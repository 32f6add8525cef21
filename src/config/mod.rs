//! Resolved configuration of a run, and the locations of its files.
//!
//! [`RunConfig`] is resolved from four layers, each overriding the previous one: built-in defaults, the plans, a TOML
//! file, and the command-line flags. The result is validated, printed and saved with the run, so `config.toml` alone
//! documents what was trained. [`WorkDir`] and [`RunDir`] are the only types that know the file names in a work folder.

mod defaults;
mod fold;
mod layer;
mod run;
mod source;
mod telemetry;
mod validate;
mod workdir;

pub use fold::FoldId;
pub use layer::Layer;
pub use run::{
    AugmentationPreset, DataConfig, Device, DistConfig, LossConfig, LossKind, OnNan, OptimizerConfig, OptimizerKind,
    RunConfig, ScheduleConfig, ScheduleKind, TrainingConfig,
};
pub use source::Source;
pub use telemetry::TelemetryConfig;
pub use workdir::{DEFAULT_PLANS, RunDir, WorkDir, check_plans_name};

/// An invalid configuration: an unknown key, a value of the wrong type or out of range, or a missing file.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {defect}")]
pub struct ConfigError {
    /// File or layer that sets the value.
    pub origin: String,
    /// Description of the error and of valid values.
    pub defect: String,
}

impl ConfigError {
    /// Creates an error for a defect in `origin`.
    pub fn new(origin: impl std::fmt::Display, defect: impl std::fmt::Display) -> Self {
        Self { origin: origin.to_string(), defect: defect.to_string() }
    }
}
