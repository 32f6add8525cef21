//! Boxes of a case: copies, views without a copy, and copying with padding.

use std::ops::Range;

use ndarray::{Array3, Array4};

/// Intensity of padding outside the image, as in nnU-Net.
pub(crate) const OUTSIDE_INTENSITY: f32 = 0.0;
/// Label of padding outside the image, as in nnU-Net.
pub(crate) const OUTSIDE_LABEL: i16 = -1;

/// Data and labels of one box of a case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// Normalized intensities, `(channel, z, y, x)`.
    pub data: Array4<f32>,
    /// Labels, `(z, y, x)`; -1 outside the image or outside the nonzero mask.
    pub labels: Array3<i16>,
    /// In a cascade, labels predicted by the previous stage, `(z, y, x)`; -1 outside the image.
    pub previous: Option<Array3<i16>>,
}

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
    pub(crate) fn copy_to(&self, patch: &mut Patch) {
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

/// Copies the box `lo .. lo + target_shape` of a C-order `(z, y, x)` array into a C-order target, one row at a time;
/// voxels outside the source become `padding`.
///
/// # Panics
/// Panics if the length of a slice does not match its shape.
fn copy_box<T: Copy>(
    source: &[T],
    source_shape: [usize; 3],
    lo: [isize; 3],
    target: &mut [T],
    target_shape: [usize; 3],
    padding: T,
) {
    assert_eq!(source.len(), source_shape.iter().product::<usize>());
    assert_eq!(target.len(), target_shape.iter().product::<usize>());
    let overlap: [Range<usize>; 3] =
        std::array::from_fn(|axis| overlap(lo[axis], target_shape[axis], source_shape[axis]));
    if (0..3).any(|axis| overlap[axis].len() < target_shape[axis]) {
        target.fill(padding);
    }
    let [zs, ys, xs] = overlap;
    if zs.is_empty() || ys.is_empty() || xs.is_empty() {
        return;
    }
    // Within the overlap, every source index is at least 0 and below the source extent.
    let source_index = |axis: usize, index: usize| lo[axis].wrapping_add_unsigned(index) as usize;
    let (x, width) = (source_index(2, xs.start), xs.len());
    for z in zs {
        for y in ys.clone() {
            let from = (source_index(0, z) * source_shape[1] + source_index(1, y)) * source_shape[2] + x;
            let to = (z * target_shape[1] + y) * target_shape[2] + xs.start;
            target[to..to + width].copy_from_slice(&source[from..from + width]);
        }
    }
}

/// Returns the target indices along one axis that are inside the source.
fn overlap(lo: isize, target: usize, source: usize) -> Range<usize> {
    let begin = lo.min(0).unsigned_abs().min(target);
    let left = source.saturating_sub(lo.max(0).unsigned_abs());
    begin..begin.max(left.saturating_add(begin).min(target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, Array4, s};

    #[test]
    fn a_region_is_copied_with_padding() {
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

    #[test]
    fn overlap_is_the_intersection_of_box_and_source() {
        assert_eq!(overlap(0, 4, 4), 0..4);
        assert_eq!(overlap(2, 4, 4), 0..2);
        assert_eq!(overlap(-1, 4, 9), 1..4);
        assert_eq!(overlap(-1, 6, 4), 1..5);
        assert!(overlap(-9, 4, 4).is_empty());
        assert!(overlap(4, 4, 4).is_empty());
        assert!(overlap(isize::MAX, 4, 4).is_empty());
        assert!(overlap(isize::MIN, 4, 4).is_empty());
    }
}
