//! Training: the training loop, steps, validation and checkpoints.
//!
//! [`run`] is the entry point of the command line. It creates a [`Trainer`] (`setup.rs`), trains (`trainer.rs`), and
//! predicts and evaluates the fold's held-out cases (`held_out.rs`); [`validate`] does only the latter, for a finished
//! run.

mod batch;
mod clock;
mod device_loss;
mod error;
mod exchange;
mod feed;
mod held_out;
mod incident;
mod measure;
mod objective;
mod pass;
mod previous_stage;
mod profile;
mod replay;
mod run;
mod saver;
mod seen;
mod setup;
mod step;
mod stop;
mod stragglers;
mod sums;
mod sync;
mod trainer;
mod validation;

pub use batch::{DeviceBatch, Targets, Upload};
pub use error::TrainError;
pub use exchange::ExchangeOptions;
pub use held_out::HeldOutOptions;
pub use incident::{Incident, RankBatches, incidents};
pub use measure::{MeasuredSteps, measure_steps};
pub use replay::{Replayed, ReplayedSample, replay};
pub use run::{Outcome, Resume, RunOptions, run, validate};
pub use seen::Seen;
pub use step::{StepMetrics, TrainStep};
pub use sync::compare_weights;
pub use trainer::Trainer;
pub use validation::{Validation, ValidationResult};
pub mod config;
pub mod http;
pub mod telemetry;
