//! What a run is told: the resolved configuration, and where its files lie.
//!
//! [`RunConfig`] is resolved from four layers, each overriding the one before: built-in defaults, the plans, a TOML
//! file, the command line's flags. The result is validated, printed and saved with the run, so `config.toml` alone says
//! what was trained. [`WorkDir`] and [`RunDir`] are the only places that know the names of the files in a work folder.

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

/// A configuration that cannot be used: an unknown key, a value of the wrong type or out of its range, a missing file.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {defect}")]
pub struct ConfigError {
    /// The file, or the layer, that states the value.
    pub origin: String,
    /// What is wrong with it and what would be right.
    pub defect: String,
}

impl ConfigError {
    /// A defect found in `origin`.
    pub fn new(origin: impl std::fmt::Display, defect: impl std::fmt::Display) -> Self {
        Self { origin: origin.to_string(), defect: defect.to_string() }
    }
}
