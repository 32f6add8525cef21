//! Ensembles: the label maps that the mean of several predictions' class probabilities gives.
//!
//! Numbers and decisions are those of nnU-Net v2 (`ensembling/ensemble.py`). [`ensemble_folders`] takes what `predict
//! --save-probabilities` has left in several folders; [`merge_case`] takes the files of one case. Probabilities are many
//! times larger than label maps and are read class by class, so that memory holds one class, whatever their number.

mod error;
mod folder;
mod merge;

pub use error::EnsembleError;
pub use folder::{EnsembleOptions, ensemble_folders};
pub use merge::{Members, merge_case, merge_cases};
