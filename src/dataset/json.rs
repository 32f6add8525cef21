//! `dataset.json` in nnU-Net v2's schema.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// `dataset.json` of nnU-Net v2 (`documentation/dataset_format.md`). Keys it does not know are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetJson {
    /// Channel index (as text) to channel name; the name picks the normalisation.
    pub channel_names: IndexMap<String, String>,
    /// Label name to class index, or to several indices for region-based training.
    pub labels: IndexMap<String, LabelValue>,
    /// Number of training cases.
    #[serde(rename = "numTraining")]
    pub num_training: usize,
    /// File name ending of images and labels, with its dot.
    pub file_ending: String,
    /// Class index of each region, for region-based training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions_class_order: Option<Vec<i16>>,
    /// Everything else in the file.
    #[serde(flatten)]
    pub other: IndexMap<String, serde_json::Value>,
}

/// The value of a label: one class index, or the indices of a region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelValue {
    /// One class.
    Class(i16),
    /// A region: the union of classes.
    Region(Vec<i16>),
}
