//! Predicted label maps against the true ones: Dice, IoU and voxel counts per case and class.
//!
//! Metrics, means and `summary.json` are those of nnU-Net v2 (`evaluation/evaluate_predictions.py`), so that tools made
//! for its results read ours. [`evaluate_folder`] pairs two folders by file name; [`evaluate_files`] takes the pairs and
//! the classes from its caller.

mod classes;
mod confusion;
mod error;
mod evaluate;
mod folder;
mod json;
mod summary;
mod table;

pub use classes::Classes;
pub use confusion::Confusion;
pub use error::EvalError;
pub use evaluate::{Pair, evaluate_cases, evaluate_files};
pub use folder::evaluate_folder;
pub use summary::{CaseResult, Metrics, Summary};
