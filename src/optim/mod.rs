//! From averaged gradients to new weights: clipping, optimisers, learning-rate schedules.

mod optimizer;
mod schedule;

pub use optimizer::{Adam, Moments, Optimizer, Rule, Sgd};
pub use schedule::Schedule;
