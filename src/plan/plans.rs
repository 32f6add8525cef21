//! `nnUNetPlans.json` in nnU-Net v2's schema.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::dataset::IntensityProperties;

/// A plan that cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("plans: {0}")]
pub struct PlanError(pub String);

/// The plans file. Keys this crate does not know are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plans {
    pub dataset_name: String,
    pub plans_name: String,
    /// Median spacing in mm after [`Plans::transpose_forward`], `(z, y, x)`.
    pub original_median_spacing_after_transp: Vec<f64>,
    /// Median shape in voxels after [`Plans::transpose_forward`], `(z, y, x)`.
    pub original_median_shape_after_transp: Vec<usize>,
    pub image_reader_writer: String,
    /// Axis permutation applied to a raw array before anything else; puts the coarsest axis first.
    pub transpose_forward: Vec<usize>,
    /// The inverse of [`Plans::transpose_forward`].
    pub transpose_backward: Vec<usize>,
    /// By name: `2d`, `3d_fullres`, `3d_lowres`, `3d_cascade_fullres`.
    pub configurations: IndexMap<String, ConfigurationEntry>,
    pub experiment_planner_used: String,
    pub label_manager: String,
    pub foreground_intensity_properties_per_channel: IndexMap<String, IntensityProperties>,
    #[serde(flatten)]
    pub other: IndexMap<String, serde_json::Value>,
}

/// One entry of `configurations`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ConfigurationEntry {
    /// A configuration that stands by itself.
    Full(Box<Configuration>),
    /// A configuration that takes what it does not state from another.
    Inherited(InheritedConfiguration),
}

/// A configuration that takes what it does not state from another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InheritedConfiguration {
    pub inherits_from: String,
    #[serde(flatten)]
    pub overrides: IndexMap<String, serde_json::Value>,
}

/// One configuration. Spatial lists have two entries `(y, x)` for 2D and three `(z, y, x)` for 3D;
/// the `*3` methods lift the former by a z extent of 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    pub data_identifier: String,
    pub preprocessor_name: String,
    /// Samples per rank and iteration.
    pub batch_size: usize,
    pub patch_size: Vec<usize>,
    pub median_image_size_in_voxels: Vec<f64>,
    /// Target spacing in mm.
    pub spacing: Vec<f64>,
    /// One normalisation class name of nnU-Net per channel.
    pub normalization_schemes: Vec<String>,
    /// Per channel: normalise inside the nonzero mask only, and set the outside to 0.
    pub use_mask_for_norm: Vec<bool>,
    pub architecture: Architecture,
    /// Compute the soft Dice over the whole batch instead of per sample.
    pub batch_dice: bool,
    /// The cascade's earlier stage, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_stage: Option<serde_json::Value>,
    /// The resampling functions and their arguments, and keys this crate does not know.
    #[serde(flatten)]
    pub other: IndexMap<String, serde_json::Value>,
}

/// `architecture` of a configuration, as `dynamic_network_architectures` takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    pub network_class_name: String,
    pub arch_kwargs: IndexMap<String, serde_json::Value>,
    #[serde(rename = "_kw_requires_import")]
    pub kw_requires_import: Vec<String>,
}

/// What the network builder needs of [`Architecture`], lifted to three dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkShape {
    /// Feature maps of each stage, highest resolution first.
    pub features: Vec<usize>,
    /// Convolution kernel of each stage, `(z, y, x)`.
    pub kernels: Vec<[usize; 3]>,
    /// Stride of each stage's first convolution; the first entry is 1.
    pub strides: Vec<[usize; 3]>,
    /// Convolutions per encoder stage.
    pub convs_encoder: Vec<usize>,
    /// Convolutions per decoder stage, lowest resolution first.
    pub convs_decoder: Vec<usize>,
    /// Whether convolutions have a bias.
    pub conv_bias: bool,
    /// Epsilon of the instance norm.
    pub norm_eps: f64,
}
