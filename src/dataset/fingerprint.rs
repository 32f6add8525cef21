//! `dataset_fingerprint.json` in nnU-Net v2's schema.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// What the planner needs to know of a dataset (`dataset_fingerprint_extractor.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Foreground intensities per channel index (as text).
    pub foreground_intensity_properties_per_channel: IndexMap<String, IntensityProperties>,
    /// Median over cases of (voxels after cropping) / (voxels before).
    pub median_relative_size_after_cropping: f64,
    /// Shape of each case after cropping to nonzero, `(z, y, x)`.
    pub shapes_after_crop: Vec<Vec<usize>>,
    /// Spacing of each case in mm, `(z, y, x)`.
    pub spacings: Vec<Vec<f64>>,
}

/// Intensities inside the foreground of one channel over the whole dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntensityProperties {
    pub max: f64,
    pub mean: f64,
    pub median: f64,
    pub min: f64,
    pub percentile_00_5: f64,
    pub percentile_99_5: f64,
    pub std: f64,
}
