//! One configuration of the plans.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::architecture::invalid_argument;
use super::network::{NetworkShape, to_3d};
use super::{Architecture, PlanError};
use crate::dataset::DatasetJson;

/// The only supported resampling function of nnU-Net: splines, with optional separate resampling along z.
const RESAMPLING_FN: &str = "resample_data_or_seg_to_shape";

/// Maximum number of voxels per batch; a single feature map of this size takes 32 GiB.
const MAX_VOXELS: usize = 1 << 33;

/// One configuration. Spatial lists have two entries `(y, x)` for 2D and three `(z, y, x)` for 3D; the `*3` methods pad
/// the former with a z extent of 1.
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
    /// One nnU-Net normalization class name per channel.
    pub normalization_schemes: Vec<String>,
    /// Per channel: normalize inside the nonzero mask only, and set the outside to 0.
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
    /// Name of the previous stage of a cascade, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_stage: Option<Value>,
    /// Name of the next stage of a cascade, or a list of names, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_stage: Option<Value>,
    /// Unknown keys.
    #[serde(flatten)]
    pub other: IndexMap<String, Value>,
}

/// Arguments of `resample_data_or_seg_to_shape`; missing keys take that function's own defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResamplingSpec {
    /// True if the values are labels, which must not be interpolated.
    #[serde(default)]
    pub is_seg: bool,
    /// Spline order within slices, or along all three axes.
    #[serde(default = "cubic")]
    pub order: usize,
    /// Spline order across slices, if these are resampled separately.
    #[serde(default)]
    pub order_z: usize,
    /// Resample separately across slices if true; `None` decides by the anisotropy.
    #[serde(default = "never")]
    pub force_separate_z: Option<bool>,
}

impl ResamplingSpec {
    /// nnU-Net's settings for images.
    pub const fn data() -> Self {
        Self { is_seg: false, order: 3, order_z: 0, force_separate_z: None }
    }

    /// nnU-Net's settings for labels.
    pub const fn labels() -> Self {
        Self { is_seg: true, order: 1, order_z: 0, force_separate_z: None }
    }

    /// nnU-Net's settings for predicted logits.
    pub const fn probabilities() -> Self {
        Self { is_seg: false, order: 1, order_z: 0, force_separate_z: None }
    }
}

impl Configuration {
    /// Returns true for a 2D configuration, which processes images slice by slice.
    pub fn is_2d(&self) -> bool {
        self.patch_size.len() == 2
    }

    /// Returns the patch size in voxels, `(z, y, x)`; z is 1 for 2D.
    pub fn patch_size3(&self) -> [usize; 3] {
        to_3d(&self.patch_size, 1)
    }

    /// Returns the configuration whose segmentations are additional network input, in the second stage of a cascade.
    pub fn previous_stage_name(&self) -> Option<&str> {
        self.previous_stage.as_ref()?.as_str()
    }

    /// Returns the configurations that take the segmentations of this one as input.
    pub fn next_stage_names(&self) -> Vec<&str> {
        match &self.next_stage {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            name => name.iter().filter_map(Value::as_str).collect(),
        }
    }

    /// Returns the number of network input channels: those of the image and, in the second stage of a cascade, one per
    /// foreground class (nnU-Net v2, `determine_num_input_channels`).
    pub fn num_input_channels(&self, dataset: &DatasetJson) -> usize {
        let classes = if self.previous_stage.is_some() { dataset.foreground_classes().len() } else { 0 };
        dataset.num_channels() + classes
    }

    /// Returns the target spacing in mm, `(z, y, x)`; z is a placeholder of 1 for 2D, where the slice spacing is kept.
    pub fn spacing3(&self) -> [f64; 3] {
        to_3d(&self.spacing, 1.0)
    }

    /// Returns the resampling of images to the target spacing.
    pub(crate) fn resampling_data(&self) -> ResamplingSpec {
        self.resampling_fn_data_kwargs
    }

    /// Returns the resampling of labels to the target spacing.
    pub(crate) fn resampling_labels(&self) -> ResamplingSpec {
        self.resampling_fn_seg_kwargs
    }

    /// Returns the resampling of predicted logits to the spacing of the raw image.
    pub fn resampling_probabilities(&self) -> ResamplingSpec {
        self.resampling_fn_probabilities_kwargs
    }

    /// Returns the network shape, with 2D shapes padded to 3D.
    ///
    /// # Errors
    /// Returns an error if the architecture is unsupported or incompatible with the patch size.
    pub fn network_shape(&self) -> Result<NetworkShape, PlanError> {
        let shape = self.architecture.network_shape()?;
        let (axes, patch) = (self.architecture.axes()?, self.patch_size3());
        if axes != self.patch_size.len() {
            let patch = &self.patch_size;
            return Err(invalid_argument(
                "conv_op",
                format!("a {axes}D network is incompatible with patch_size {patch:?}"),
            ));
        }
        let divisor = |axis: usize| shape.strides.iter().map(|stride| stride[axis]).fold(1, usize::saturating_mul);
        let by: [usize; 3] = std::array::from_fn(divisor);
        if (0..3).any(|axis| patch[axis] % by[axis] != 0) {
            let reason = format!("patch_size {patch:?} is not divisible by their product {by:?}");
            return Err(invalid_argument("strides", reason));
        }
        if patch == by {
            let reason = format!("reduce patch_size {patch:?} to a single voxel, which cannot be instance-normalized");
            return Err(invalid_argument("strides", reason));
        }
        self.architecture.check_size(&shape)?;
        Ok(shape)
    }

    /// Returns the first inconsistency that the schema allows.
    pub(super) fn inconsistency(&self) -> Option<String> {
        // data_identifier names a folder, whose cases preprocessing replaces.
        if matches!(self.data_identifier.as_str(), "" | "." | "..") || self.data_identifier.contains(['/', '\\']) {
            return Some(format!("data_identifier {:?} must be the name of a folder", self.data_identifier));
        }
        let (patch, spacing) = (&self.patch_size, &self.spacing);
        if !matches!(patch.len(), 2 | 3) || patch.contains(&0) {
            return Some(format!("patch_size {patch:?} must be two or three positive numbers"));
        }
        if spacing.len() != patch.len() || spacing.iter().any(|mm| !(mm.is_finite() && *mm > 0.0)) {
            return Some(format!("spacing {spacing:?} must be {} positive numbers, like patch_size", patch.len()));
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
        if let Some(defect) = self.order_problem() {
            return Some(defect);
        }
        let functions = [&self.resampling_fn_data, &self.resampling_fn_seg, &self.resampling_fn_probabilities];
        let unknown = functions.into_iter().find(|function| *function != RESAMPLING_FN)?;
        Some(format!("resampling function {unknown:?} is not supported; use {RESAMPLING_FN:?}"))
    }
}

impl Configuration {
    /// Returns the first spline order that the resampling does not have.
    fn order_problem(&self) -> Option<String> {
        const INTENSITIES: &[usize] = &[0, 1, 3];
        const LABELS: &[usize] = &[0, 1];
        let specs = [
            ("resampling_fn_data_kwargs", &self.resampling_fn_data_kwargs, INTENSITIES),
            ("resampling_fn_seg_kwargs", &self.resampling_fn_seg_kwargs, LABELS),
            ("resampling_fn_probabilities_kwargs", &self.resampling_fn_probabilities_kwargs, INTENSITIES),
        ];
        specs.into_iter().find_map(|(key, spec, supported)| {
            let orders = [("order", spec.order), ("order_z", spec.order_z)];
            let (name, order) = orders.into_iter().find(|(_, order)| !supported.contains(order))?;
            Some(format!("{key}: {name} {order} is not supported; use one of {supported:?}"))
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_implemented_spline_orders_are_accepted() {
        let json = serde_json::json!({
            "data_identifier": "d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [8, 8],
            "median_image_size_in_voxels": [8.0, 8.0], "spacing": [1.0, 1.0],
            "normalization_schemes": ["NoNormalization"], "use_mask_for_norm": [false], "batch_dice": true,
            "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
        });
        let good: Configuration = serde_json::from_value(json).unwrap();
        assert_eq!(good.inconsistency(), None);
        for order in [2, 4, 5, 99] {
            for key in ["order", "order_z"] {
                for kwargs in
                    ["resampling_fn_data_kwargs", "resampling_fn_seg_kwargs", "resampling_fn_probabilities_kwargs"]
                {
                    let mut json = serde_json::to_value(&good).unwrap();
                    json[kwargs][key] = order.into();
                    let bad: Configuration = serde_json::from_value(json).unwrap();
                    let defect = bad.inconsistency().unwrap();
                    assert!(defect.contains(kwargs) && defect.contains(&format!("{key} {order}")), "{defect}");
                }
            }
        }
    }
}
