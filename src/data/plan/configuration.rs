//! One configuration of the plans, and what the rest of the crate asks of it.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::architecture::wrong;
use super::lift::lift;
use super::{Architecture, NetworkShape, PlanError};
use crate::dataset::DatasetJson;

/// The only resampling function of nnU-Net that this crate follows: splines, with the option of a separate z.
const RESAMPLING_FN: &str = "resample_data_or_seg_to_shape";

/// Voxels of a batch, at most: of a single feature map they take 32 GiB.
const MAX_VOXELS: usize = 1 << 33;

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
    #[serde(default = "resampling_fn")]
    pub resampling_fn_data: String,
    #[serde(default = "resampling_fn")]
    pub resampling_fn_seg: String,
    #[serde(default = "ResamplingSpec::data")]
    pub resampling_fn_data_kwargs: ResamplingSpec,
    #[serde(default = "ResamplingSpec::labels")]
    pub resampling_fn_seg_kwargs: ResamplingSpec,
    #[serde(default = "resampling_fn")]
    pub resampling_fn_probabilities: String,
    #[serde(default = "ResamplingSpec::probabilities")]
    pub resampling_fn_probabilities_kwargs: ResamplingSpec,
    pub architecture: Architecture,
    /// Compute the soft Dice over the whole batch instead of per sample.
    pub batch_dice: bool,
    /// The cascade's earlier stage, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_stage: Option<Value>,
    /// The cascade's later stage, or a list of them, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_stage: Option<Value>,
    /// Keys this crate does not know.
    #[serde(flatten)]
    pub other: IndexMap<String, Value>,
}

/// Arguments of a resampling (`resample_data_or_seg_to_shape`); what is not stated is that function's own default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResamplingSpec {
    /// Whether the values are labels, which must not be mixed.
    #[serde(default)]
    pub is_seg: bool,
    /// Spline order inside slices, or in all three axes.
    #[serde(default = "cubic")]
    pub order: usize,
    /// Spline order across slices, where these are resampled separately.
    #[serde(default)]
    pub order_z: usize,
    /// Whether to resample across slices separately; `None` where the anisotropy decides.
    #[serde(default = "never")]
    pub force_separate_z: Option<bool>,
}

impl ResamplingSpec {
    /// nnU-Net's choice for images.
    pub const fn data() -> Self {
        Self { is_seg: false, order: 3, order_z: 0, force_separate_z: None }
    }

    /// nnU-Net's choice for labels.
    pub const fn labels() -> Self {
        Self { is_seg: true, order: 1, order_z: 0, force_separate_z: None }
    }

    /// nnU-Net's choice for predicted logits.
    pub const fn probabilities() -> Self {
        Self { is_seg: false, order: 1, order_z: 0, force_separate_z: None }
    }
}

impl Configuration {
    /// Whether images are cut into slices.
    pub fn is_2d(&self) -> bool {
        self.patch_size.len() == 2
    }

    /// Patch size in voxels `(z, y, x)`; z is 1 for 2D.
    pub fn patch_size3(&self) -> [usize; 3] {
        lift(&self.patch_size, 1)
    }

    /// The configuration whose segmentations the network is given beside the image, in the second stage of a cascade.
    pub fn previous_stage_name(&self) -> Option<&str> {
        self.previous_stage.as_ref()?.as_str()
    }

    /// The configurations that are to be given this one's segmentations.
    pub fn next_stage_names(&self) -> Vec<&str> {
        match &self.next_stage {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            name => name.iter().filter_map(Value::as_str).collect(),
        }
    }

    /// Input channels of the network: those of the image and, in the second stage of a cascade, one per foreground class
    /// (nnU-Net v2, `determine_num_input_channels`).
    pub fn num_input_channels(&self, dataset: &DatasetJson) -> usize {
        let classes = if self.previous_stage.is_some() { dataset.foreground_classes().len() } else { 0 };
        dataset.num_channels() + classes
    }

    /// Target spacing in mm `(z, y, x)`; z is a placeholder of 1 for 2D, where slices keep their distance.
    pub fn spacing3(&self) -> [f64; 3] {
        lift(&self.spacing, 1.0)
    }

    /// How images are resampled to the target spacing.
    pub fn resampling_data(&self) -> ResamplingSpec {
        self.resampling_fn_data_kwargs
    }

    /// How labels are resampled to the target spacing.
    pub fn resampling_labels(&self) -> ResamplingSpec {
        self.resampling_fn_seg_kwargs
    }

    /// How predicted logits are resampled to the spacing of the raw image.
    pub fn resampling_probabilities(&self) -> ResamplingSpec {
        self.resampling_fn_probabilities_kwargs
    }

    /// What the network builder needs to know, lifted to three dimensions.
    ///
    /// # Errors
    /// Says what in the architecture this crate cannot build, or does not fit the patch.
    pub fn network_shape(&self) -> Result<NetworkShape, PlanError> {
        let shape = self.architecture.network_shape()?;
        let (axes, patch) = (self.architecture.axes()?, self.patch_size3());
        if axes != self.patch_size.len() {
            let patch = &self.patch_size;
            return Err(wrong("conv_op", format!("a network of {axes} axes cannot take patches of {patch:?}")));
        }
        let divisor = |axis: usize| shape.strides.iter().map(|stride| stride[axis]).fold(1, usize::saturating_mul);
        let by: [usize; 3] = std::array::from_fn(divisor);
        if (0..3).any(|axis| patch[axis] % by[axis] != 0) {
            let reason = format!("patch_size {patch:?} is not divisible by their product {by:?}");
            return Err(wrong("strides", reason));
        }
        if patch == by {
            let reason = format!("of patch_size {patch:?} they leave a single voxel, which has no variance to norm");
            return Err(wrong("strides", reason));
        }
        self.architecture.check_size(&shape)?;
        Ok(shape)
    }

    /// What the schema allows and no user can mean.
    pub(super) fn contradiction(&self) -> Option<String> {
        // It is the name of a folder, whose cases preprocessing replaces.
        if matches!(self.data_identifier.as_str(), "" | "." | "..") || self.data_identifier.contains(['/', '\\']) {
            return Some(format!("data_identifier {:?} must be the name of a folder", self.data_identifier));
        }
        let (patch, spacing) = (&self.patch_size, &self.spacing);
        if !matches!(patch.len(), 2 | 3) || patch.contains(&0) {
            return Some(format!("patch_size {patch:?} must be two or three positive numbers"));
        }
        if spacing.len() != patch.len() || spacing.iter().any(|mm| !(mm.is_finite() && *mm > 0.0)) {
            return Some(format!("spacing {spacing:?} must be {} positive numbers, as patch_size has", patch.len()));
        }
        if self.batch_size == 0 {
            return Some("batch_size must be positive".to_owned());
        }
        if patch.iter().fold(self.batch_size, |voxels, &extent| voxels.saturating_mul(extent)) > MAX_VOXELS {
            let batch = self.batch_size;
            return Some(format!("batch_size {batch} with patch_size {patch:?} has more than {MAX_VOXELS} voxels"));
        }
        let (schemes, masks) = (self.normalization_schemes.len(), self.use_mask_for_norm.len());
        if schemes != masks {
            return Some(format!("{schemes} normalization_schemes but {masks} entries in use_mask_for_norm"));
        }
        let is_name = |stage: &Value| stage.is_string();
        if self.previous_stage.as_ref().is_some_and(|stage| !is_name(stage)) {
            return Some("previous_stage must be the name of a configuration".to_owned());
        }
        let are_names =
            |stage: &Value| is_name(stage) || stage.as_array().is_some_and(|names| names.iter().all(is_name));
        if self.next_stage.as_ref().is_some_and(|stage| !are_names(stage)) {
            return Some("next_stage must be the name of a configuration, or a list of names".to_owned());
        }
        let functions = [&self.resampling_fn_data, &self.resampling_fn_seg, &self.resampling_fn_probabilities];
        let unknown = functions.into_iter().find(|function| *function != RESAMPLING_FN)?;
        Some(format!("resampling function {unknown:?} is not supported; use {RESAMPLING_FN:?}"))
    }
}

pub(super) fn resampling_fn() -> String {
    RESAMPLING_FN.to_owned()
}

fn cubic() -> usize {
    3
}

fn never() -> Option<bool> {
    Some(false)
}
