//! Configuration of a training run.
//!
//! [`RunConfig`] is resolved from four layers, each overriding the one before: built-in defaults, the plans, a TOML
//! file, the command line's flags. The result is validated, printed and saved with the run, so `config.toml` alone says
//! what was trained.

mod defaults;
mod layer;
mod renamed;
mod resolve;
mod run;
mod telemetry;
mod validate;

pub use layer::Layer;
pub use run::{
    DataConfig, DistConfig, LossConfig, LossKind, OnNan, OptimizerConfig, OptimizerKind, RunConfig, TrainingConfig,
};
pub use telemetry::TelemetryConfig;
