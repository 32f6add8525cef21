//! The training loop.

mod step;

pub use step::{StepMetrics, TrainStep, batch_tensor};
