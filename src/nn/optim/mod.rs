//! Optimizers with gradient clipping, and learning-rate schedules.

mod lookahead;
mod optimizer;
mod schedule;

pub use lookahead::Lookahead;
pub use optimizer::{Adam, Moments, Optimizer, Rule, Sgd};
pub use schedule::{Schedule, ScheduleConfig, ScheduleKind};
