//! The two stages of a cascade: what the first tells the second.

use std::path::{Path, PathBuf};

use ndarray::{Array4, ArrayView3, Axis};

use super::InferError;
use nnunet_data::dataset::{CaseFiles, DatasetJson};
use nnunet_data::plan::Configuration;
use nnunet_data::store::CaseProperties;
use nnunet_image::compute_new_shape;

/// A later stage, to which segmentations go in the voxels of its own preprocessed cases.
#[derive(Clone, Debug, PartialEq)]
pub struct NextStage {
    /// Where the segmentations are written, see [`nnunet_data::store::write_label_map`].
    pub folder: PathBuf,
    /// Voxel size in mm of its preprocessed cases, `(z, y, x)`.
    pub spacing: [f64; 3],
}

impl NextStage {
    /// Extent of its preprocessed case, which is the same image, cropped alike.
    pub(super) fn shape(&self, case: &CaseProperties) -> [usize; 3] {
        let cropped = case.shape_after_cropping_and_before_resampling;
        compute_new_shape(cropped, case.spacing_before_resampling(), self.spacing)
    }
}

/// What a second stage is given of the first: a channel of zeros and ones for each foreground class, behind those of the
/// image (nnU-Net v2, `convert_labelmap_to_one_hot`).
#[derive(Clone, Debug)]
pub(super) struct FromPreviousStage {
    /// Its name in the plans.
    name: String,
    /// Foreground classes, in the order of their channels.
    classes: Vec<i16>,
}

impl FromPreviousStage {
    /// `None` for a network that is not the second stage of a cascade.
    pub(super) fn of(configuration: &Configuration, dataset: &DatasetJson) -> Option<Self> {
        let name = configuration.previous_stage_name()?.to_owned();
        Some(Self { name, classes: dataset.foreground_classes() })
    }

    /// That there is no segmentation of that stage.
    pub(super) fn is_missing(&self) -> InferError {
        InferError::NoPreviousStage { name: self.name.clone() }
    }

    /// Puts the channels of a segmentation with the image's voxels behind those of the image.
    ///
    /// # Errors
    /// There is no segmentation.
    ///
    /// # Panics
    /// If image and segmentation differ in extent.
    pub(super) fn add_to(
        &self,
        mut image: Array4<f32>,
        labels: Option<ArrayView3<i16>>,
    ) -> Result<Array4<f32>, InferError> {
        let labels = labels.ok_or_else(|| self.is_missing())?;
        for &class in &self.classes {
            let channel = labels.mapv(|label| f32::from(u8::from(label == class)));
            image.push(Axis(0), channel.view()).expect("image and segmentation have one extent");
        }
        Ok(image)
    }
}

/// Gives each case the label map of its name in a folder.
///
/// # Errors
/// Names the cases that have none.
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
        let from = FromPreviousStage { name: "3d_lowres".into(), classes: vec![1, 2] };
        let labels = Array3::from_shape_vec((1, 1, 4), vec![2, -1, 1, 0]).unwrap();
        let input = from.add_to(Array4::from_elem((1, 1, 1, 4), 7.0), Some(labels.view())).unwrap();
        let expected = ndarray::array![[7.0f32; 4], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]];
        assert_eq!(input.slice(s![.., 0, 0, ..]), expected);
        let error = from.add_to(Array4::zeros((1, 1, 1, 4)), None).unwrap_err().to_string();
        assert!(error.contains("3d_lowres") && error.contains("--prev-stage-predictions"), "{error}");
    }
}
