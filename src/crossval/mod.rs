//! Commands after cross-validation: collecting the results, selecting the best configuration or ensemble, and
//! instructions for inference.
//!
//! Rules and files are those of nnU-Net v2 (`evaluation/accumulate_cv_results.py`,
//! `evaluation/find_best_configuration.py`). [`accumulate`] collects the label maps of all folds; [`find_best`]
//! compares configurations and pairs of them, determines the postprocessing of the best, and writes the inference
//! commands.

mod best;
mod candidate;
mod error;
mod held_out;

pub use best::{Best, BestOptions, Information, Model, find_best, instructions};
pub use candidate::accumulate;
pub use error::CrossvalError;
pub use held_out::HeldOutResults;
