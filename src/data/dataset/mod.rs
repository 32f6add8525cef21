//! Raw datasets: which files make up a case, whether they fit together, what a planner needs to know of them, and which
//! cases a fold trains on.
//!
//! [`Dataset::open`] understands nnU-Net v2's layout and that of the Medical Segmentation Decathlon, and after it nothing
//! in the crate knows the difference. [`validate`] looks into every file before any work is spent on the dataset, so that
//! later stages meet defects only where files change meanwhile.

mod case;
mod description;
mod error;
mod fingerprint;
mod images;
mod intensities;
mod json;
mod layout;
mod numpy;
mod raw;
mod splits;
mod validate;

pub use case::{Case, CaseFiles};
pub use error::DatasetError;
pub use fingerprint::{Fingerprint, IntensityProperties, extract_fingerprint};
pub use images::{case_name, find_images, group_images};
pub use json::{DatasetJson, Foreground, LabelValue};
pub use layout::{Layout, convert_dataset};
pub use raw::Dataset;
pub use splits::{Fold, Splits};
pub use validate::validate;
