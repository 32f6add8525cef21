//! Inspection of a case: header, intensities, label volumes, and a picture.
//!
//! [`InspectCase`] names the files of a case; [`InspectCase::inspect`] reads them and returns a [`CaseReport`] for text
//! and JSON, and a [`CaseView`] for [`montage`] and [`comparison`].

mod case_report;
mod montage;
mod orientation;
mod side_by_side;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Axis;

pub use crate::canvas::label_color;
pub use case_report::{CaseReport, Histogram, ImageReport, Intensities, LabelReport, LabelVolume};
pub use montage::{comparison, montage};
pub use side_by_side::side_by_side;
pub use view::CaseView;

use nnunet_data::dataset::{Dataset, DatasetError, LabelValue};
use nnunet_image::{ImageError, read_header, read_labels, read_volume};

/// The files of a case.
#[derive(Clone, Debug)]
pub struct InspectCase {
    pub name: String,
    pub images: Vec<PathBuf>,
    pub label: Option<PathBuf>,
    /// Names of the classes, as far as known.
    pub classes: BTreeMap<i16, String>,
}

impl InspectCase {
    /// A single image or a folder of DICOM files, with an optional label map.
    pub fn from_file(image: &Path, label: Option<&Path>) -> Self {
        Self {
            name: image.file_name().unwrap_or(image.as_os_str()).to_string_lossy().into_owned(),
            images: vec![image.to_owned()],
            label: label.map(Path::to_owned),
            classes: BTreeMap::new(),
        }
    }

    /// A training case of a raw dataset.
    ///
    /// # Errors
    /// Returns an error if the dataset has no such case.
    pub fn from_dataset(dataset: &Dataset, id: &str) -> Result<Self, DatasetError> {
        let case = dataset.cases.iter().find(|case| case.id == id).ok_or_else(|| {
            let some: Vec<_> = dataset.cases.iter().take(3).map(|case| case.id.as_str()).collect();
            DatasetError::invalid(&dataset.root, format_args!("has no case {id}; available: {}, ...", some.join(", ")))
        })?;
        let named = dataset.json.labels.iter().filter_map(|(name, value)| match value {
            LabelValue::Class(label) => Some((*label, name.clone())),
            LabelValue::Region(_) => None,
        });
        Ok(Self {
            name: case.id.clone(),
            images: case.images.clone(),
            label: case.label.clone(),
            classes: named.collect(),
        })
    }

    /// Reads the case and computes its report.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or if image and label map differ in shape.
    pub fn inspect(&self) -> Result<(CaseReport, CaseView), ImageError> {
        let labels = self.label.as_ref().map(|path| Ok::<_, ImageError>((path, read_labels(path)?))).transpose()?;
        let mut images = Vec::new();
        let mut first = None;
        for path in &self.images {
            let header = read_header(path)?;
            let volume = read_volume(path)?;
            if let Some((path, labels)) = &labels
                && labels.data.shape() != &volume.data.shape()[1..]
            {
                let (found, expected) = (labels.data.shape(), &volume.data.shape()[1..]);
                return Err(ImageError::new(path, format!("shape {found:?} differs from {expected:?} of the image")));
            }
            let labels = labels.as_ref().map(|(_, labels)| &labels.data);
            images.push(ImageReport::new(path, &header, &volume, labels));
            if first.is_none() {
                first = Some((volume.data.index_axis_move(Axis(0), 0), volume.geometry));
            }
        }
        let (image, geometry) =
            first.ok_or_else(|| ImageError::new(Path::new(&self.name), "the case has no images"))?;
        let report = LabelReport::new(&labels, &self.classes);
        let window = images[0].channels.first().map_or([0.0, 1.0], Intensities::window);
        let view = CaseView {
            name: self.name.clone(),
            image,
            window,
            labels: labels.map(|(_, labels)| labels.data),
            geometry,
            legend: report.as_ref().map(|report| report.classes.clone()).unwrap_or_default(),
        };
        Ok((CaseReport { case: self.name.clone(), images, labels: report }, view))
    }
}
