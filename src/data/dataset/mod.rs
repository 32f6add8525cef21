//! Raw datasets: files of each case, consistency checks, statistics for the planner, and cross-validation folds.
//!
//! [`Dataset::open`] reads the layouts of nnU-Net v2 and the Medical Segmentation Decathlon; the rest of the crate does
//! not depend on the layout. [`validate`] checks every file before any work is spent on the dataset, so later stages
//! encounter defects only if files change in the meantime.

mod case;
mod case_grouping;
mod description;
mod error;
mod fingerprint;
mod intensities;
mod json;
mod layout;
mod numpy;
mod raw;
mod splits;
mod validate;

pub use case::{Case, CaseFiles};
pub use case_grouping::{case_name, find_images, group_images};
pub use error::DatasetError;
pub use fingerprint::{Fingerprint, IntensityProperties, extract_fingerprint};
pub use json::{DatasetJson, Foreground, LabelValue};
pub use layout::{RawLayout, convert_dataset};
pub use raw::Dataset;
pub use splits::{Fold, Splits};
pub use validate::validate;
