//! Evaluation of predicted label maps against references: overlap, surface, volume and rate metrics per case and class.
//!
//! Dice, IoU, voxel counts, means and `summary.json` match nnU-Net v2 (`evaluation/evaluate_predictions.py`), so that
//! existing tools can read the results; [`Measures`] adds further metrics. [`evaluate_folder`] pairs two folders by
//! file name; [`evaluate_files`] takes the pairs and the classes from the caller. A case is read once: overlap metrics
//! follow from the counts of [`Confusion`], and [`SurfaceDistances`] are computed one class at a time.

mod classes;
mod confidence;
mod confusion;
mod error;
mod evaluate;
mod json;
mod measure;
pub mod postprocess;
mod summary;
mod surface;
mod table;

pub use classes::{Classes, class_key};
pub use confusion::Confusion;
pub use error::EvalError;
pub use evaluate::{FolderOptions, Pair, evaluate_cases, evaluate_files, evaluate_folder, pair_folders};
pub(crate) use evaluate::{label_maps, read_pair};
pub use json::{from_str as from_json, to_file as json_to_file};
pub use measure::{Measure, Measured, Measures, Tolerance};
pub use summary::{CaseResult, Confidence, Interval, Metrics, Summary};
pub use surface::{SurfaceDistances, squared_distances};
pub use table::case_name;
