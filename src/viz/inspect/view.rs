//! Image, labels and legend of a case, as its picture shows them.

use ndarray::Array3;

use super::case_report::LabelVolume;
use nnunet_image::Geometry;

/// The data of a case that its picture shows.
#[derive(Clone, Debug)]
pub struct CaseView {
    pub name: String,
    /// First channel, `(z, y, x)`.
    pub image: Array3<f32>,
    /// Intensities displayed as black and white.
    pub window: [f32; 2],
    pub labels: Option<Array3<i16>>,
    pub geometry: Geometry,
    /// Name and volume of each class.
    pub legend: Vec<LabelVolume>,
}
