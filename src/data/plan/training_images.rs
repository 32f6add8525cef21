//! The range of the training images' geometries, to recognize images that are far outside of it.

use std::collections::BTreeSet;

use nnunet_image::Geometry;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Plans;
use crate::dataset::Fingerprint;

/// Key of this program in plans. nnU-Net ignores it.
const KEY: &str = "training_images";
/// Factor beyond the range of the training spacings from which an image is far outside.
const FAR: f64 = 2.0;
/// The same, relative to the median spacing, if the plans state only that.
const FAR_FROM_MEDIAN: f64 = 4.0;

/// Orientations and spacings of the training images, as stored in their files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingImages {
    /// Orientations such as `LPS`; empty if unknown.
    orientations: BTreeSet<String>,
    /// Smallest spacing along each axis in mm, `(z, y, x)`.
    spacing_min: [f64; 3],
    /// Largest spacing along each axis in mm, `(z, y, x)`.
    spacing_max: [f64; 3],
}

impl TrainingImages {
    /// Returns the range of a dataset; `None` if its fingerprint has no orientations, as nnU-Net's.
    pub(super) fn from_fingerprint(fingerprint: &Fingerprint) -> Option<Self> {
        if fingerprint.orientations.is_empty() {
            return None;
        }
        let along = |axis: usize| fingerprint.spacings.iter().filter_map(move |spacing| spacing.get(axis).copied());
        Some(Self {
            orientations: fingerprint.orientations.clone(),
            spacing_min: std::array::from_fn(|axis| along(axis).fold(f64::INFINITY, f64::min)),
            spacing_max: std::array::from_fn(|axis| along(axis).fold(0.0, f64::max)),
        })
    }

    /// Returns the entry of plans that keeps the range.
    pub(super) fn entry(self) -> (String, Value) {
        (KEY.to_owned(), serde_json::to_value(self).unwrap_or_default())
    }

    /// Reads the range from plans. Plans without it, such as nnU-Net's, state the median spacing only.
    pub fn from_plans(plans: &Plans) -> Option<Self> {
        if let Some(range) = plans.other.get(KEY) {
            return serde_json::from_value(range.clone()).ok();
        }
        let mut median = [0.0; 3];
        // The plans state the spacing after transposition.
        for (to, &from) in plans.transpose_forward.iter().enumerate() {
            *median.get_mut(from)? = *plans.original_median_spacing_after_transp.get(to)?;
        }
        let margin = FAR_FROM_MEDIAN / FAR;
        let (spacing_min, spacing_max) = (median.map(|mm| mm / margin), median.map(|mm| mm * margin));
        Some(Self { orientations: BTreeSet::new(), spacing_min, spacing_max })
    }

    /// Describes the property of an image that is far outside of the training images'; `None` if none is.
    pub fn describe_outlier(&self, geometry: &Geometry) -> Option<String> {
        let Self { orientations, spacing_min, spacing_max } = self;
        let spacing = geometry.spacing;
        let is_far = |axis: usize| spacing[axis] * FAR < spacing_min[axis] || spacing[axis] > spacing_max[axis] * FAR;
        if (0..3).any(is_far) {
            let range: Vec<String> =
                spacing_min.iter().zip(spacing_max).map(|(low, high)| format!("{low:.3} to {high:.3}")).collect();
            return Some(format!(
                "spacing (z, y, x) {spacing:.3?} mm is far from that of the training images, {}",
                range.join(", ")
            ));
        }
        let orientation = geometry.orientation();
        if orientations.is_empty() || orientations.contains(&orientation) {
            return None;
        }
        let known: Vec<&str> = orientations.iter().map(String::as_str).collect();
        Some(format!("orientation {orientation} is none of the training images' ({})", known.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> TrainingImages {
        TrainingImages {
            orientations: BTreeSet::from(["LPS".to_owned()]),
            spacing_min: [2.0, 0.5, 0.5],
            spacing_max: [5.0, 0.8, 0.8],
        }
    }

    #[test]
    fn only_images_far_outside_are_described() {
        let placed = |spacing| Geometry { spacing, ..Geometry::default() };
        for spacing in [[2.0, 0.5, 0.5], [9.0, 1.5, 0.3]] {
            assert_eq!(range().describe_outlier(&placed(spacing)), None);
        }
        for spacing in [[11.0, 0.5, 0.5], [5.0, 0.5, 0.2], [0.5, 0.5, 5.0], [999.0, 1.0, 1.0]] {
            assert!(range().describe_outlier(&placed(spacing)).unwrap().contains("spacing"), "{spacing:?}");
        }
        let direction = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
        let turned = Geometry { direction, ..placed([2.0, 0.5, 0.5]) };
        let found = range().describe_outlier(&turned).unwrap();
        assert!(found.contains("SPL") && found.contains("LPS"), "{found}");
    }
}
