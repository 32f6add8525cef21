//! Scaling of training with the number of ranks: measured on this machine or cluster, and predicted beyond it.
//!
//! [`measure`] runs on the ranks of one job: training steps, and all-reduces of several sizes. [`Experiment`] starts
//! such a job for each number of ranks. [`Link`] is the alpha-beta model of the all-reduce, fitted to the measurements
//! or given by the nominal bandwidth of a network; [`predict`] computes the resulting efficiency.

mod experiment;
mod model;
mod report;

pub use experiment::{Experiment, Measurement, ScalingError, ScalingMode, measure};
pub use model::{AllReduceTime, Link, Prediction, StepCost, predict};
pub use report::{csv, plot, table};
