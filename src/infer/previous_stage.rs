//! Input of a cascade's second stage from the segmentations of the first.

use std::path::{Path, PathBuf};

use ndarray::{Array4, ArrayView3, Axis};

use super::InferError;
use nnunet_data::dataset::{CaseFiles, DatasetJson};
use nnunet_data::plan::Configuration;
use nnunet_data::store::CaseProperties;
use nnunet_image::compute_new_shape;

/// Later stage that receives segmentations in the voxel grid of its own preprocessed cases.
#[derive(Clone, Debug, PartialEq)]
pub struct NextStage {
    /// Folder for the segmentations, see `nnunet_data::store::write_label_map`.
    pub folder: PathBuf,
    /// Voxel size of the stage's preprocessed cases in mm, `(z, y, x)`.
    pub spacing: [f64; 3],
}

impl NextStage {
    /// Returns the shape of the stage's preprocessed case, which is the same image with the same cropping.
    pub(super) fn shape(&self, case: &CaseProperties) -> [usize; 3] {
        let cropped = case.shape_after_cropping_and_before_resampling;
        compute_new_shape(cropped, case.spacing_before_resampling(), self.spacing)
    }
}

/// Channels that a second stage receives from the first: one-hot encoded foreground classes, appended to the channels
/// of the image (nnU-Net v2, `convert_labelmap_to_one_hot`).
#[derive(Clone, Debug)]
pub(super) struct PreviousStageInput {
    /// Name of the previous stage's configuration in the plans.
    name: String,
    /// Foreground classes in the order of their channels.
    classes: Vec<i16>,
}

impl PreviousStageInput {
    /// Returns `None` if the network is not the second stage of a cascade.
    pub(super) fn from_configuration(configuration: &Configuration, dataset: &DatasetJson) -> Option<Self> {
        let name = configuration.previous_stage_name()?.to_owned();
        Some(Self { name, classes: dataset.foreground_classes() })
    }

    /// Creates the error for a missing segmentation of the previous stage.
    pub(super) fn missing_error(&self) -> InferError {
        InferError::NoPreviousStage { name: self.name.clone() }
    }

    /// Appends the one-hot channels of a segmentation with the image's voxel grid to the image.
    ///
    /// # Errors
    /// Returns an error if there is no segmentation.
    ///
    /// # Panics
    /// If image and segmentation differ in shape.
    pub(super) fn append_channels(
        &self,
        mut image: Array4<f32>,
        labels: Option<ArrayView3<i16>>,
    ) -> Result<Array4<f32>, InferError> {
        let labels = labels.ok_or_else(|| self.missing_error())?;
        for &class in &self.classes {
            let channel = labels.mapv(|label| f32::from(u8::from(label == class)));
            image.push(Axis(0), channel.view()).expect("image and segmentation have one extent");
        }
        Ok(image)
    }
}

/// Assigns to each case the label map of its name in a folder.
///
/// # Errors
/// Returns an error that gives the number and the first of the cases without a label map.
pub(super) fn add_label_maps(cases: &mut [CaseFiles], folder: &Path, file_ending: &str) -> Result<(), InferError> {
    for case in cases.iter_mut() {
        case.label = Some(folder.join(format!("{}{file_ending}", case.id))).filter(|path| path.is_file());
    }
    let missing: Vec<_> = cases.iter().filter(|case| case.label.is_none()).collect();
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(InferError::PreviousMissing {
            folder: folder.to_owned(),
            number: missing.len(),
            first: first.id.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, s};

    use super::*;

    #[test]
    fn classes_become_channels_behind_those_of_the_image() {
        let from = PreviousStageInput { name: "3d_lowres".into(), classes: vec![1, 2] };
        let labels = Array3::from_shape_vec((1, 1, 4), vec![2, -1, 1, 0]).unwrap();
        let input = from.append_channels(Array4::from_elem((1, 1, 1, 4), 7.0), Some(labels.view())).unwrap();
        let expected = ndarray::array![[7.0f32; 4], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]];
        assert_eq!(input.slice(s![.., 0, 0, ..]), expected);
        let error = from.append_channels(Array4::zeros((1, 1, 1, 4)), None).unwrap_err().to_string();
        assert!(error.contains("3d_lowres") && error.contains("--prev-stage-predictions"), "{error}");
    }
}
