//! A box of a case, without a copy.

use std::ops::Range;

use super::Patch;
use super::crop::copy_box;

/// Intensity of padding outside the image, as in nnU-Net.
pub const OUTSIDE_INTENSITY: f32 = 0.0;
pub const OUTSIDE_LABEL: i16 = -1;

/// A view of a box within the arrays of a whole case.
///
/// Position `p` of the box is voxel `lo + p` of the arrays. Positions outside the arrays are padding: intensity 0 and
/// label -1.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Intensities of the whole case, `(channel, z, y, x)` in C order.
    pub data: &'a [f32],
    /// Labels of the whole case, `(z, y, x)` in C order.
    pub labels: &'a [i16],
    /// In a cascade, labels of the whole case predicted by the previous stage.
    pub previous: Option<&'a [i16]>,
    /// Extent of the arrays, `(z, y, x)`.
    pub shape: [usize; 3],
    /// Lower corner of the box in the arrays; may be negative.
    pub lo: [isize; 3],
    /// Extent of the box.
    pub size: [usize; 3],
}

impl<'a> From<&'a Patch> for Region<'a> {
    /// Returns a region that covers the whole patch.
    ///
    /// # Panics
    /// Panics if the patch's arrays are not in C order.
    fn from(patch: &'a Patch) -> Self {
        let shape = patch.labels.dim().into();
        let data = patch.data.as_slice().expect("patches are in C order");
        let labels = patch.labels.as_slice().expect("patches are in C order");
        let previous = patch.previous.as_ref().map(|labels| labels.as_slice().expect("patches are in C order"));
        Self { data, labels, previous, shape, lo: [0; 3], size: shape }
    }
}

impl<'a> Region<'a> {
    /// Returns the centered box of this `size`; if the difference is odd, the larger half follows the box, as in
    /// batchgeneratorsv2's `crop_tensor`.
    pub fn centre(self, size: [usize; 3]) -> Self {
        let lo = std::array::from_fn(|axis| {
            let margin = (self.size[axis] / 2).cast_signed() - (size[axis] / 2).cast_signed();
            self.lo[axis] + margin
        });
        Self { lo, size, ..self }
    }

    /// Returns, per axis, the positions of the box that are voxels of the arrays; all others are padding.
    pub fn voxels(&self) -> [Range<usize>; 3] {
        std::array::from_fn(|axis| {
            let begin = self.lo[axis].min(0).unsigned_abs().min(self.size[axis]);
            let end = self.shape[axis].cast_signed().saturating_sub(self.lo[axis]).max(0).unsigned_abs();
            begin..end.min(self.size[axis]).max(begin)
        })
    }

    /// Returns the intensities of each channel of the whole case.
    pub fn channels(&self) -> impl Iterator<Item = &'a [f32]> {
        self.data.chunks_exact(self.labels.len().max(1))
    }

    /// Copies the box into a patch of the same extent.
    ///
    /// # Panics
    /// Panics if the patch differs in extent or is not in C order.
    pub fn copy_to(&self, patch: &mut Patch) {
        let voxels = self.size.iter().product::<usize>().max(1);
        let data = patch.data.as_slice_mut().expect("patches are in C order");
        for (source, target) in self.channels().zip(data.chunks_exact_mut(voxels)) {
            copy_box(source, self.shape, self.lo, target, self.size, OUTSIDE_INTENSITY);
        }
        let labels = patch.labels.as_slice_mut().expect("patches are in C order");
        copy_box(self.labels, self.shape, self.lo, labels, self.size, OUTSIDE_LABEL);
        if let (Some(source), Some(target)) = (self.previous, &mut patch.previous) {
            let target = target.as_slice_mut().expect("patches are in C order");
            copy_box(source, self.shape, self.lo, target, self.size, OUTSIDE_LABEL);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, Array4, s};

    use super::*;

    #[test]
    fn a_region_knows_its_voxels_and_copies_padding_around_them() {
        let mut case = Patch {
            data: Array4::ones((2, 4, 5, 6)),
            labels: Array3::zeros((4, 5, 6)),
            previous: Some(Array3::from_elem((4, 5, 6), 3)),
        };
        case.labels[[0, 1, 5]] = 7;
        let region = Region { lo: [-2, 1, 4], size: [4, 3, 5], ..Region::from(&case) };
        assert_eq!(region.voxels(), [2..4, 0..3, 0..2]);
        let mut patch = Patch {
            data: Array4::zeros((2, 4, 3, 5)),
            labels: Array3::zeros((4, 3, 5)),
            previous: Some(Array3::zeros((4, 3, 5))),
        };
        region.copy_to(&mut patch);
        let previous = patch.previous.as_ref().unwrap();
        assert_eq!((previous[[2, 0, 1]], previous[[1, 0, 1]]), (3, OUTSIDE_LABEL));
        assert_eq!(patch.labels[[2, 0, 1]], 7);
        assert_eq!(patch.data.sum(), 2.0 * 2.0 * 3.0 * 2.0);
        assert!(patch.labels.slice(s![..2, .., ..]).iter().all(|&label| label == OUTSIDE_LABEL));

        let centre = region.centre([1, 2, 2]);
        assert_eq!((centre.lo, centre.size), ([0, 1, 5], [1, 2, 2]));
        assert_eq!(Region { lo: [9, 0, -9], ..region }.voxels(), [0..0, 0..3, 5..5]);
    }
}
