//! Ensembles: label maps from the mean of the class probabilities of several predictions.
//!
//! Matches nnU-Net v2 (`ensembling/ensemble.py`). [`ensemble_folders`] reads the output of `predict
//! --save-probabilities` from several folders; [`merge_case`] reads the files of one case. Probabilities are many times
//! larger than label maps and are read class by class, so that only one class is in memory, regardless of the number of
//! members.

mod error;
mod folder;
mod merge;

pub use error::EnsembleError;
pub use folder::{EnsembleOptions, ensemble_folders};
pub use merge::{Members, merge_case, merge_cases};
