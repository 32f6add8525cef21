//! A preprocessed case and its metadata.

use std::collections::BTreeMap;

use ndarray::{Array3, Array4, ArrayView3, s};
use serde::{Deserialize, Serialize};

use nnunet_image::Geometry;

/// Key in [`CaseProperties::class_locations`] of all voxels without the ignore label, including background and the
/// surroundings of the object: nnU-Net's `annotated_classes_key`.
pub const ANNOTATED: i16 = -1;

/// A case in the form that the network receives.
#[derive(Clone, Debug, PartialEq)]
pub struct PreprocessedCase {
    /// Normalized intensities, `(channel, z, y, x)`.
    pub data: Array4<f32>,
    /// Labels, `(z, y, x)`, -1 outside the nonzero mask; `None` for an unlabeled case.
    pub labels: Option<Array3<i16>>,
    /// Record of the preprocessing steps.
    pub properties: CaseProperties,
}

/// Metadata of a preprocessed case: how it was preprocessed and the locations of its classes.
///
/// Names follow the properties that nnU-Net v2 pickles beside its arrays. All axes except those of
/// [`CaseProperties::geometry`] are in the order after [`CaseProperties::transpose_forward`].
/// [`CaseProperties::restore`] maps back to the raw grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseProperties {
    /// Geometry of the raw image, in its own axis order.
    pub geometry: Geometry,
    /// Raw axis of each axis: `transpose_forward[a]` is the raw axis that became axis `a`.
    pub transpose_forward: [usize; 3],
    /// Extent in voxels before cropping.
    pub shape_before_cropping: [usize; 3],
    /// `[start, end)` of the crop along each axis, in voxels.
    pub bbox_used_for_cropping: [[usize; 2]; 3],
    /// Extent in voxels of the cropped box.
    pub shape_after_cropping_and_before_resampling: [usize; 3],
    /// Extent in voxels of the stored arrays.
    pub shape_after_resampling: [usize; 3],
    /// Voxel size in mm of the stored arrays.
    pub spacing_after_resampling: [f64; 3],
    /// Per foreground class or region present: a bounded random sample of its voxels in the stored arrays. The key of a
    /// region is its label in predictions. If the dataset has an ignore label, all other voxels have the key
    /// [`ANNOTATED`].
    pub class_locations: BTreeMap<i16, Vec<[u32; 3]>>,
}

impl CaseProperties {
    /// Returns the voxel size in mm of the cropped image, in the axis order after transposition.
    pub fn spacing_before_resampling(&self) -> [f64; 3] {
        self.transpose_forward.map(|raw| self.geometry.spacing[raw])
    }

    /// Returns the extent in voxels of the raw image, in its own axis order.
    pub fn raw_shape(&self) -> [usize; 3] {
        let mut shape = [0; 3];
        for (axis, &raw) in self.transpose_forward.iter().enumerate() {
            shape[raw] = self.shape_before_cropping[axis];
        }
        shape
    }

    /// Undoes cropping and transposition: places a map of the cropped image in the grid of the raw image, with
    /// `outside` in the voxels that were cropped away.
    ///
    /// # Panics
    /// Panics if the shape of `cropped` is not [`CaseProperties::shape_after_cropping_and_before_resampling`].
    pub fn restore<T: Copy>(&self, cropped: ArrayView3<T>, outside: T) -> Array3<T> {
        assert_eq!(cropped.shape(), self.shape_after_cropping_and_before_resampling, "not the cropped shape");
        let mut raw = Array3::from_elem(self.raw_shape(), outside);
        let [z, y, x] = self.bbox_used_for_cropping;
        raw.view_mut()
            .permuted_axes(self.transpose_forward)
            .slice_mut(s![z[0]..z[1], y[0]..y[1], x[0]..x[1]])
            .assign(&cropped);
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_undoes_transposition_and_cropping() {
        let raw = Array3::from_shape_fn((4, 5, 6), |(z, y, x)| (z * 100 + y * 10 + x) as i16);
        let properties = CaseProperties {
            geometry: Geometry { spacing: [1.0, 2.0, 3.0], ..Geometry::default() },
            transpose_forward: [2, 0, 1],
            shape_before_cropping: [6, 4, 5],
            bbox_used_for_cropping: [[1, 5], [0, 3], [2, 5]],
            shape_after_cropping_and_before_resampling: [4, 3, 3],
            shape_after_resampling: [4, 3, 3],
            spacing_after_resampling: [3.0, 1.0, 2.0],
            class_locations: BTreeMap::new(),
        };
        assert_eq!(properties.raw_shape(), [4, 5, 6]);
        assert_eq!(properties.spacing_before_resampling(), [3.0, 1.0, 2.0]);

        let cropped = raw.view().permuted_axes([2, 0, 1]).slice_move(s![1..5, 0..3, 2..5]).to_owned();
        let restored = properties.restore(cropped.view(), -7);
        for (index @ (z, y, x), &value) in restored.indexed_iter() {
            let kept = (1..5).contains(&x) && (0..3).contains(&z) && (2..5).contains(&y);
            assert_eq!(value, if kept { raw[index] } else { -7 });
        }
    }
}
