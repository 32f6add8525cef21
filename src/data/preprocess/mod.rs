//! Preprocessing of raw cases into the form that the network receives.
//!
//! [`Preprocessor`] runs the steps of nnU-Net v2's `DefaultPreprocessor` on one case, in its order: transpose, crop to
//! nonzero, normalize, resample, and sample class locations. [`preprocess_dataset`] runs it on all training cases with
//! all cores, within a memory limit, and fills the [`store`](crate::store). Prediction runs the same [`Preprocessor`]
//! on unlabeled cases and maps results back with [`CaseProperties::restore`].

mod locations;
mod manifest;
mod memory;
mod normalize;
mod preprocessor;
mod run;

pub use locations::{ClassGroups, case_number};
pub use manifest::{MANIFEST, Manifest, RawFile};
pub use preprocessor::{CroppedCase, PreprocessError, Preprocessor};
pub use run::{PreprocessSummary, ResourceLimits, preprocess_dataset};

pub use crate::store::{CaseProperties, PreprocessedCase};
