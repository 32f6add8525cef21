//! Predicted label maps against the true ones: overlap, surfaces, volumes and rates per case and class.
//!
//! Dice, IoU, voxel counts, means and `summary.json` are those of nnU-Net v2 (`evaluation/evaluate_predictions.py`), so
//! that tools made for its results read ours; [`Measures`] asks for more. [`evaluate_folder`] pairs two folders by file
//! name; [`evaluate_files`] takes the pairs and the classes from its caller. A case is read once, and of two label maps
//! the table of [`Confusion`] is all that counting needs; [`SurfaceDistances`] look at one class at a time.

mod classes;
mod confidence;
mod confusion;
mod csv;
mod distance;
mod error;
mod evaluate;
mod folder;
mod json;
mod masks;
mod measure;
mod quantile;
mod summary;
mod surface;
mod table;

pub use classes::Classes;
pub use classes::key as class_key;
pub use confidence::{Confidence, Interval};
pub use confusion::Confusion;
pub use distance::squared_distances;
pub use error::EvalError;
pub(crate) use evaluate::read_pair;
pub use evaluate::{Pair, evaluate_cases, evaluate_files};
pub(crate) use folder::label_maps;
pub use folder::{FolderOptions, evaluate_folder, pair_folders};
pub use json::{from_str as from_json, to_file as json_to_file};
pub use measure::{Measure, Measured, Measures, Tolerance};
pub use summary::{CaseResult, Metrics, Summary};
pub use surface::SurfaceDistances;
pub use table::case_name;
pub mod postprocess;
