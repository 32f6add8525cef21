//! From averaged gradients to new weights: clipping, optimisers, learning-rate schedules.

mod optimizer;

pub use optimizer::{Adam, Moments, Optimizer, Rule, Sgd, StepReport};
