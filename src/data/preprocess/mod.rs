//! Preprocessing: from raw cases to what the network sees.
//!
//! [`Preprocessor`] does to one case what nnU-Net v2's `DefaultPreprocessor` does, in its order: transpose, crop to
//! nonzero, normalise, resample, and sample where the classes lie. [`preprocess_dataset`] does so to all training cases
//! on all cores, within a bound on memory, and fills the [`store`](crate::store). Prediction runs the same [`Preprocessor`] on an unlabelled case
//! and goes back by [`CaseProperties::restore`].

mod granted;
mod locations;
mod memory;
mod normalize;
mod preprocessor;
mod run;

pub use granted::granted_memory;
pub use locations::{ClassGroups, case_number};
pub use normalize::Normalization;
pub use preprocessor::{Prepared, PreprocessError, Preprocessor};
pub use run::{Limits, Report, preprocess_dataset};

pub use crate::store::{CaseProperties, PreprocessedCase};
