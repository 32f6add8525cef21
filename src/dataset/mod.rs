//! Raw datasets: folders, `dataset.json`, validation, fingerprint, cross-validation splits.

mod fingerprint;
mod json;

pub use fingerprint::{Fingerprint, IntensityProperties};
pub use json::{DatasetJson, LabelValue};
