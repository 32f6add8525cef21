//! Training: the loop, one step of it, validation and checkpoints.
//!
//! [`run`] is what the command line calls. It makes a [`Trainer`] (`setup.rs`), lets it train (`trainer.rs`), and has the
//! fold's held-out cases predicted and evaluated (`held_out.rs`).

mod checkpoint;
mod error;
mod held_out;
mod run;
mod setup;
mod step;
mod sums;
mod trainer;
mod validation;

pub use checkpoint::{Checkpoint, Progress};
pub use error::TrainError;
pub use run::run;
pub use step::{StepMetrics, TrainStep};
pub use trainer::Trainer;
pub use validation::{Validation, ValidationResult};
