//! A preprocessed case and what is written down about it.

use std::collections::BTreeMap;

use ndarray::{Array3, Array4, ArrayView3, s};
use serde::{Deserialize, Serialize};

use nnunet_image::Geometry;

/// The key in [`CaseProperties::class_locations`] of voxels that have not the ignore label, background and surroundings
/// included: nnU-Net's `annotated_classes_key`.
pub const ANNOTATED: i16 = -1;

/// A case as the network sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct PreprocessedCase {
    /// Normalised intensities, `(channel, z, y, x)`.
    pub data: Array4<f32>,
    /// Labels, `(z, y, x)`, -1 outside the nonzero mask; `None` if the case came without.
    pub labels: Option<Array3<i16>>,
    /// What was done to it.
    pub properties: CaseProperties,
}

/// Everything about a preprocessed case but its voxels: how it came about and where its classes lie.
///
/// Names follow the properties that nnU-Net v2 pickles beside its arrays. Except for [`CaseProperties::geometry`], all
/// axes are those after [`CaseProperties::transpose_forward`]. [`CaseProperties::restore`] is the way back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseProperties {
    /// Where the raw image lies, in its own axis order.
    pub geometry: Geometry,
    /// `transpose_forward[a]` is the raw axis that became axis `a`.
    pub transpose_forward: [usize; 3],
    /// Extent in voxels.
    pub shape_before_cropping: [usize; 3],
    /// `[first, past the last]` voxel kept of each axis.
    pub bbox_used_for_cropping: [[usize; 2]; 3],
    /// Extent in voxels of the kept box.
    pub shape_after_cropping_and_before_resampling: [usize; 3],
    /// Extent in voxels of the stored arrays.
    pub shape_after_resampling: [usize; 3],
    /// Voxel size in mm of the stored arrays.
    pub spacing_after_resampling: [f64; 3],
    /// For each foreground class or region present: a bounded random sample of its voxels in the stored arrays. A region
    /// goes by its label in predictions. Where the dataset has an ignore label, all other voxels go by [`ANNOTATED`].
    pub class_locations: BTreeMap<i16, Vec<[u32; 3]>>,
}

impl CaseProperties {
    /// Voxel size in mm of the cropped image, in the axis order after transposition.
    pub fn spacing_before_resampling(&self) -> [f64; 3] {
        self.transpose_forward.map(|raw| self.geometry.spacing[raw])
    }

    /// Extent in voxels of the raw image, in its own axis order.
    pub fn raw_shape(&self) -> [usize; 3] {
        let mut shape = [0; 3];
        for (axis, &raw) in self.transpose_forward.iter().enumerate() {
            shape[raw] = self.shape_before_cropping[axis];
        }
        shape
    }

    /// Undoes cropping and transposition: puts a map of the cropped image into the raw image's grid, with `outside`
    /// where nothing was kept.
    ///
    /// # Panics
    /// If `cropped` is not of [`CaseProperties::shape_after_cropping_and_before_resampling`].
    pub fn restore<T: Copy>(&self, cropped: ArrayView3<T>, outside: T) -> Array3<T> {
        assert_eq!(cropped.shape(), self.shape_after_cropping_and_before_resampling, "not a map of the cropped image");
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
