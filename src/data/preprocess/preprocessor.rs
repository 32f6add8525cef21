//! Preprocessing of one case.

use std::collections::BTreeMap;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis, Zip, s};
use rayon::prelude::*;

use super::locations::{ClassGroups, case_number};
use super::memory::case_memory_bound;
use super::normalize::Normalization;
use super::{CaseProperties, PreprocessedCase};
use crate::dataset::{Case, DatasetError, DatasetJson};
use crate::plan::{PlanError, Plans, ResamplingSpec};
use crate::store::StoreError;
use nnunet_comm::distributed::CommError;
use nnunet_core::lock::LockError;
use nnunet_core::memory;
use nnunet_image::{self as image, ImageHeader, Resampling};

/// Label of background voxels outside the nonzero mask (nnU-Net v2, `cropping.py`).
const OUTSIDE: i16 = -1;

/// An error of preprocessing.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    /// The plans are invalid or unsupported.
    #[error("{0}")]
    Plans(#[from] PlanError),
    /// A case cannot be read.
    #[error("case {case}: {cause}")]
    Read {
        case: String,
        #[source]
        cause: DatasetError,
    },
    /// A case is inconsistent with the plans.
    #[error("case {case}: {defect}")]
    Case { case: String, defect: String },
    /// A case cannot be written.
    #[error("case {case}: {cause}")]
    Write {
        case: String,
        #[source]
        cause: StoreError,
    },
    /// Preprocessing of a case panicked.
    #[error("case {case}: preprocessing panicked with the message above; this is a bug, please report it")]
    Panic { case: String },
    /// The output folder cannot be prepared.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Another process preprocesses into the same folder.
    #[error("{0}")]
    Locked(#[from] LockError),
    /// A raw file cannot be read.
    #[error("case {case}: {cause}")]
    Raw {
        case: String,
        #[source]
        cause: std::io::Error,
    },
    /// The worker threads cannot be started.
    #[error("cannot start {jobs} preprocessing threads: {cause}; use fewer jobs")]
    Threads { jobs: usize, cause: rayon::ThreadPoolBuildError },
    /// Another rank failed.
    #[error("{0}")]
    Comm(#[from] CommError),
}

/// Preprocessing steps of one configuration of the plans (nnU-Net v2, `default_preprocessor.py`).
#[derive(Clone, Debug)]
pub struct Preprocessor {
    transpose_forward: [usize; 3],
    /// Voxel size in mm along `(z, y, x)`; without z in 2D configurations, which keep the slice spacing.
    target_spacing: TargetSpacing,
    /// One scheme per channel.
    normalizations: Vec<Normalization>,
    resampling_data: Resampling,
    resampling_labels: Resampling,
    classes: ClassGroups,
}

#[derive(Clone, Copy, Debug)]
enum TargetSpacing {
    InPlane([f64; 2]),
    Volume([f64; 3]),
}

impl Preprocessor {
    /// Creates a preprocessor from a `configuration` of the plans and the classes of the dataset.
    ///
    /// # Errors
    /// Returns an error if the configuration is missing, or has unknown or contradictory settings.
    pub fn new(plans: &Plans, configuration: &str, dataset: &DatasetJson) -> Result<Self, PreprocessError> {
        let fail = |reason: String| plans.invalid(configuration, reason);
        let transpose_forward = permutation(&plans.transpose_forward).map_err(fail)?;
        let configuration = plans.configuration(configuration)?;
        let target_spacing = TargetSpacing::parse(&configuration.spacing).map_err(fail)?;
        let normalizations = configuration
            .normalization_schemes
            .iter()
            .enumerate()
            .map(|(channel, scheme)| {
                let use_mask = configuration.use_mask_for_norm.get(channel).copied().unwrap_or(false);
                let intensities = plans.foreground_intensity_properties_per_channel.get(&channel.to_string());
                Normalization::from_plans(scheme, use_mask, intensities)
                    .map_err(|defect| fail(format!("channel {channel}: {defect}")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            transpose_forward,
            target_spacing,
            normalizations,
            resampling_data: resampling(configuration.resampling_data()),
            resampling_labels: resampling(configuration.resampling_labels()),
            classes: ClassGroups::from_dataset(dataset).map_err(|defect| fail(format!("dataset.json: {defect}")))?,
        })
    }

    /// Transposes, crops to nonzero, normalizes and resamples a case, and samples its class locations.
    ///
    /// # Errors
    /// Returns an error if the number of channels differs from the plans, if image and label map differ in shape, or if
    /// the intensities contradict the normalization scheme.
    pub fn run(&self, case: &Case) -> Result<PreprocessedCase, PreprocessError> {
        Ok(self.resample_and_locate(self.prepare(case)?))
    }

    /// Runs the first half of [`Preprocessor::run`]: transposes, crops to nonzero and normalizes. The raw case is not
    /// needed afterwards.
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`Preprocessor::run`].
    pub fn prepare(&self, case: &Case) -> Result<CroppedCase, PreprocessError> {
        self.prepare_unnamed(case).map_err(|defect| PreprocessError::Case { case: case.id.clone(), defect })
    }

    /// Runs the second half: resamples, and samples the class locations.
    pub fn resample_and_locate(&self, mut prepared: CroppedCase) -> PreprocessedCase {
        if let Some(resampled) = self.resample_image(&prepared) {
            prepared.data = resampled;
        }
        if let Some(resampled) = self.resample_labels(&prepared) {
            prepared.labels = Some(resampled);
        }
        let class_locations = prepared.labels.as_ref().map(|labels| self.locate(&prepared, labels));
        let CroppedCase { data, labels, mut properties, .. } = prepared;
        properties.class_locations = class_locations.unwrap_or_default();
        PreprocessedCase { data, labels, properties }
    }

    /// Resamples the image; `None` if its extent does not change.
    pub fn resample_image(&self, prepared: &CroppedCase) -> Option<Array4<f32>> {
        let CroppedCase { data, properties, .. } = prepared;
        let [from, to] = [properties.spacing_before_resampling(), properties.spacing_after_resampling];
        let shape = properties.shape_after_resampling;
        prepared.is_resampled().then(|| image::resample_data(data.view(), shape, from, to, &self.resampling_data))
    }

    /// Resamples the labels; `None` if their extent does not change, or there are none.
    pub fn resample_labels(&self, prepared: &CroppedCase) -> Option<Array3<i16>> {
        let CroppedCase { labels, properties, .. } = prepared;
        let [from, to] = [properties.spacing_before_resampling(), properties.spacing_after_resampling];
        let shape = properties.shape_after_resampling;
        let labels = labels.as_ref().filter(|_| prepared.is_resampled())?;
        Some(image::resample_labels(labels.view(), shape, from, to, &self.resampling_labels))
    }

    /// Samples the class locations in the resampled labels of a case.
    pub fn locate(&self, prepared: &CroppedCase, labels: &Array3<i16>) -> BTreeMap<i16, Vec<[u32; 3]>> {
        self.classes.sample(labels.view(), prepared.case)
    }

    /// Returns the extent after resampling of a raw image that is not cropped, `(z, y, x)` after transposition.
    pub fn shape_after_resampling(&self, image: &ImageHeader) -> [usize; 3] {
        let [_, shape @ ..] = image.shape;
        let spacing = self.transpose_forward.map(|raw| image.geometry.spacing[raw]);
        let target = self.target_spacing.for_case(spacing);
        image::compute_new_shape(self.transpose_forward.map(|raw| shape[raw]), spacing, target)
    }

    fn prepare_unnamed(&self, case: &Case) -> Result<CroppedCase, String> {
        let channels = case.image.data.len_of(Axis(0));
        if channels != self.normalizations.len() {
            return Err(format!("has {channels} channels, but the plans have {}", self.normalizations.len()));
        }
        let [z, y, x] = self.transpose_forward;
        let image = case.image.data.view().permuted_axes([0, z + 1, y + 1, x + 1]);
        let labels = case.label.as_ref().map(|label| label.data.view().permuted_axes(self.transpose_forward));
        if let Some(labels) = labels.filter(|labels| labels.shape() != &image.shape()[1..]) {
            let (labels, image) = (labels.shape(), &image.shape()[1..]);
            return Err(format!("the label map's shape {labels:?} differs from the image's {image:?}"));
        }

        let NonzeroCrop { bbox, mut data, labels, inside } = crop_to_nonzero(image, labels);
        self.normalize(&mut data, inside.view())?;

        let spacing = self.transpose_forward.map(|raw| case.image.geometry.spacing[raw]);
        let target = self.target_spacing.for_case(spacing);
        let cropped_shape = spatial(&data);
        let shape = image::compute_new_shape(cropped_shape, spacing, target);
        if shape.contains(&0) {
            return Err(format!(
                "the shape {cropped_shape:?} at {spacing:?} mm has no voxels at the target spacing {target:?} mm"
            ));
        }
        check_resampled_size(shape, cropped_shape, target, channels)?;
        let properties = CaseProperties {
            geometry: case.image.geometry.clone(),
            transpose_forward: self.transpose_forward,
            shape_before_cropping: [image.shape()[1], image.shape()[2], image.shape()[3]],
            bbox_used_for_cropping: bbox,
            shape_after_cropping_and_before_resampling: cropped_shape,
            shape_after_resampling: shape,
            spacing_after_resampling: target,
            class_locations: BTreeMap::new(),
        };
        Ok(CroppedCase { case: case_number(&case.id), data, labels, properties })
    }

    fn normalize(&self, data: &mut Array4<f32>, inside: ArrayView3<bool>) -> Result<(), String> {
        data.axis_iter_mut(Axis(0)).into_par_iter().zip(self.normalizations.par_iter()).enumerate().try_for_each(
            |(channel, (image, normalization))| {
                normalization.apply(image, inside).map_err(|defect| format!("channel {channel}: {defect}"))
            },
        )
    }
}

impl TargetSpacing {
    fn parse(spacing: &[f64]) -> Result<Self, String> {
        if !spacing.iter().all(|&mm| mm.is_finite() && mm > 0.0) {
            return Err(format!("the target spacing {spacing:?} mm must be positive"));
        }
        match *spacing {
            [y, x] => Ok(Self::InPlane([y, x])),
            [z, y, x] => Ok(Self::Volume([z, y, x])),
            _ => Err(format!("the target spacing {spacing:?} mm must have two or three entries")),
        }
    }

    /// Returns the target spacing for a case of this spacing.
    fn for_case(self, spacing: [f64; 3]) -> [f64; 3] {
        match self {
            Self::InPlane([y, x]) => [spacing[0], y, x],
            Self::Volume(target) => target,
        }
    }
}

/// A cropped and normalized case, from [`Preprocessor::prepare`] for [`Preprocessor::resample_and_locate`].
#[derive(Clone, Debug)]
pub struct CroppedCase {
    /// [`case_number`] of the case.
    case: u64,
    data: Array4<f32>,
    labels: Option<Array3<i16>>,
    /// Complete except for the class locations.
    properties: CaseProperties,
}

impl CroppedCase {
    /// Shape of the case at the target spacing, `(z, y, x)`.
    pub fn shape_after_resampling(&self) -> [usize; 3] {
        self.properties.shape_after_resampling
    }

    /// Returns an upper bound on the memory needed to resample the case, in bytes.
    pub fn memory_bound(&self) -> u64 {
        let CaseProperties { shape_after_cropping_and_before_resampling: cropped, .. } = self.properties;
        case_memory_bound(self.data.len_of(Axis(0)), cropped, self.shape_after_resampling())
    }

    fn is_resampled(&self) -> bool {
        self.properties.shape_after_resampling != self.properties.shape_after_cropping_and_before_resampling
    }
}

/// The nonzero part of a case, in C order.
struct NonzeroCrop {
    /// `[start, end)` of the crop along each axis.
    bbox: [[usize; 2]; 3],
    data: Array4<f32>,
    labels: Option<Array3<i16>>,
    /// True for voxels of the nonzero mask: nonzero in some channel, enclosed by such voxels, or labeled.
    inside: Array3<bool>,
}

/// Crops to the bounding box of the nonzero voxels and marks the background outside the mask in the labels.
fn crop_to_nonzero(image: ArrayView4<f32>, labels: Option<ArrayView3<i16>>) -> NonzeroCrop {
    let mask = image::nonzero_mask(image);
    let bbox @ [z, y, x] = image::bounding_box(&mask);
    let kept = s![z[0]..z[1], y[0]..y[1], x[0]..x[1]];
    let mut inside = mask.slice(kept).to_owned();
    let labels = labels.map(|labels| {
        let mut labels = labels.slice(kept).as_standard_layout().into_owned();
        Zip::from(&mut labels).and(&mut inside).for_each(|label, inside| {
            if *label == 0 && !*inside {
                *label = OUTSIDE;
            }
            *inside = *label >= 0;
        });
        labels
    });
    let data = image.slice(s![.., z[0]..z[1], y[0]..y[1], x[0]..x[1]]).as_standard_layout().into_owned();
    NonzeroCrop { bbox, data, labels, inside }
}

/// Checks, before anything is allocated, that the image at the target spacing fits into the memory of the machine.
fn check_resampled_size(
    shape: [usize; 3],
    cropped: [usize; 3],
    target: [f64; 3],
    channels: usize,
) -> Result<(), String> {
    memory::check_fits(case_memory_bound(channels, cropped, shape)).map_err(|excess| {
        format!("{shape:?} voxels (z, y, x) at the target spacing {target:.3?} mm need {excess}; check the spacing of the image")
    })
}

fn spatial(data: &Array4<f32>) -> [usize; 3] {
    let (_, z, y, x) = data.dim();
    [z, y, x]
}

fn permutation(axes: &[usize]) -> Result<[usize; 3], String> {
    let order = <[usize; 3]>::try_from(axes).ok().filter(|order| (0..3).all(|axis| order.contains(&axis)));
    order.ok_or_else(|| format!("transpose_forward {axes:?} is not a permutation of 0, 1, 2"))
}

fn resampling(spec: ResamplingSpec) -> Resampling {
    Resampling { order: spec.order, order_z: spec.order_z, force_separate_z: spec.force_separate_z }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use nnunet_image::{Geometry, LabelMap, Volume};

    fn preprocessor(spacing: &[f64], scheme: &str, use_mask: bool) -> Result<Preprocessor, PreprocessError> {
        let resampling = |order: usize, is_seg: bool| json!({"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": null});
        let axes = spacing.len();
        let network = json!({
            "network_class_name": "PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": 8,
                "conv_op": format!("Conv{axes}d"),
                "kernel_sizes": 3,
                "strides": [vec![1; axes], vec![2; axes]],
                "n_conv_per_stage": 1,
                "n_conv_per_stage_decoder": 1,
                "norm_op": format!("InstanceNorm{axes}d"),
                "norm_op_kwargs": {"affine": true},
                "nonlin": "LeakyReLU",
            },
            "_kw_requires_import": [],
        });
        let plans = serde_json::from_value(json!({
            "dataset_name": "Dataset001_Phantom",
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
            "original_median_shape_after_transp": [8, 8, 8],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [2, 0, 1],
            "transpose_backward": [1, 2, 0],
            "configurations": {"only": {
                "data_identifier": "nnUNetPlans_only",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": vec![8; spacing.len()],
                "median_image_size_in_voxels": vec![8.0; spacing.len()],
                "spacing": spacing,
                "normalization_schemes": [scheme],
                "use_mask_for_norm": [use_mask],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling(3, false),
                "resampling_fn_seg_kwargs": resampling(1, true),
                "architecture": network,
                "batch_dice": true,
            }},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {},
        }))
        .unwrap();
        let dataset = serde_json::from_value(json!({
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "organ": 1},
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }))
        .unwrap();
        Preprocessor::new(&plans, "only", &dataset)
    }

    /// Creates a case of 5 x 6 x 7 voxels, nonzero where 1 <= z < 4, 2 <= y < 5, 0 <= x < 6, except for two corners of
    /// that box: in one, only the label map is nonzero; in the other, neither is.
    fn case() -> Case {
        let mut data = Array4::zeros((1, 5, 6, 7));
        data.slice_mut(s![0, 1..4, 2..5, 0..6])
            .assign(&Array3::from_shape_fn((3, 3, 6), |(z, y, x)| (1 + z * 18 + y * 6 + x) as f32));
        let mut labels = Array3::zeros((5, 6, 7));
        labels.slice_mut(s![2, 3, 1..5]).fill(1);
        (data[[0, 1, 2, 0]], labels[[1, 2, 0]]) = (0.0, 1);
        data[[0, 3, 4, 5]] = 0.0;
        let geometry = Geometry { spacing: [3.0, 2.0, 4.0], ..Geometry::default() };
        Case {
            id: "phantom".into(),
            label: Some(LabelMap { data: labels, geometry: geometry.clone() }),
            image: Volume { data, geometry },
        }
    }

    #[test]
    fn transposes_crops_marks_the_outside_and_restores() {
        let case = case();
        let PreprocessedCase { data, labels, properties } =
            preprocessor(&[4.0, 3.0, 2.0], "NoNormalization", false).unwrap().run(&case).unwrap();
        assert_eq!(properties.shape_before_cropping, [7, 5, 6]);
        assert_eq!(properties.bbox_used_for_cropping, [[0, 6], [1, 4], [2, 5]]);
        assert_eq!(properties.shape_after_cropping_and_before_resampling, [6, 3, 3]);
        assert_eq!(properties.shape_after_resampling, [6, 3, 3]);
        assert_eq!(properties.spacing_after_resampling, [4.0, 3.0, 2.0]);

        let labels = labels.unwrap();
        assert_eq!(labels[[0, 0, 0]], 1, "a label outside the mask stays");
        assert_eq!(labels[[5, 2, 2]], -1, "the background outside the mask is marked");
        assert_eq!(labels.iter().filter(|&&label| label == -1).count(), 1);
        assert_eq!(properties.class_locations[&1], [[0, 0, 0], [1, 1, 1], [2, 1, 1], [3, 1, 1], [4, 1, 1]]);

        assert_eq!(properties.restore(data.index_axis(Axis(0), 0), 0.0), case.image.data.index_axis(Axis(0), 0));
        let restored = properties.restore(labels.view(), 0).mapv(|label| label.max(0));
        assert_eq!(restored, case.label.unwrap().data);
    }

    #[test]
    fn a_masked_z_score_uses_only_the_inside() {
        let got = preprocessor(&[4.0, 3.0, 2.0], "ZScoreNormalization", true).unwrap().run(&case()).unwrap();
        let labels = got.labels.unwrap();
        let inside: Vec<f64> =
            got.data.iter().zip(&labels).filter(|(_, label)| **label >= 0).map(|(v, _)| f64::from(*v)).collect();
        let mean = inside.iter().sum::<f64>() / inside.len() as f64;
        let variance = inside.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / inside.len() as f64;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "mean {mean}, variance {variance}");
        assert_eq!(got.data[[0, 5, 2, 2]], 0.0);
    }

    #[test]
    fn a_2d_configuration_keeps_the_slice_spacing() {
        let got = preprocessor(&[1.5, 1.0], "NoNormalization", false).unwrap().run(&case()).unwrap();
        assert_eq!(got.properties.spacing_after_resampling, [4.0, 1.5, 1.0]);
        assert_eq!(got.data.shape(), [1, 6, 6, 6]);
        assert_eq!(got.labels.unwrap().shape(), [6, 6, 6]);
    }

    #[test]
    fn an_unlabeled_case_has_no_labels_and_no_locations() {
        let got = preprocessor(&[4.0, 3.0, 2.0], "NoNormalization", false)
            .unwrap()
            .run(&Case { label: None, ..case() })
            .unwrap();
        assert!(got.labels.is_none() && got.properties.class_locations.is_empty());
    }

    #[test]
    fn an_incompatible_case_is_named() {
        let fits = preprocessor(&[4.0, 3.0, 2.0], "NoNormalization", false).unwrap();
        let error = |case: &Case, preprocessor: &Preprocessor| preprocessor.run(case).unwrap_err().to_string();

        let mut two_channels = case();
        two_channels.image.data = Array4::zeros((2, 5, 6, 7));
        assert_eq!(error(&two_channels, &fits), "case phantom: has 2 channels, but the plans have 1");

        let mut other_shape = case();
        other_shape.label = other_shape.label.map(|map| LabelMap { data: Array3::zeros((5, 6, 8)), ..map });
        assert!(error(&other_shape, &fits).contains("case phantom: the label map's shape [8, 5, 6]"));

        let fine = preprocessor(&[1e-5, 1e-5, 1e-5], "NoNormalization", false).unwrap();
        let too_large = error(&case(), &fine);
        assert!(too_large.contains("case phantom: [") && too_large.contains("of this machine"), "{too_large}");

        let coarse = preprocessor(&[4.0, 300.0, 2.0], "NoNormalization", false).unwrap();
        assert!(error(&case(), &coarse).contains("has no voxels"));
    }

    #[test]
    fn rejects_unsupported_plans() {
        let error = |spacing: &[f64], scheme| preprocessor(spacing, scheme, false).unwrap_err().to_string();
        assert!(error(&[1.0; 3], "Histogram").contains("configuration \"only\": channel 0"));
        assert!(error(&[1.0; 3], "CTNormalization").contains("foreground intensity properties"));
        assert!(error(&[1.0, 0.0, 1.0], "NoNormalization").contains("positive numbers"));
        assert!(error(&[1.0; 4], "NoNormalization").contains("positive numbers"));
    }
}
