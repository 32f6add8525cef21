//! Training: the loop, one step of it, validation and checkpoints.
//!
//! [`run`] is what the command line calls. It makes a [`Trainer`] (`setup.rs`), lets it train (`trainer.rs`), and has the
//! fold's held-out cases predicted and evaluated (`held_out.rs`); [`validate`] does only that, to a run that is over.

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
