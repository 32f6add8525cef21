//! Mirroring, rotation by 90 degrees and transposition: transforms that move voxels without interpolation.

use ndarray::{Array3, Axis};
use nnunet_core::rng::Stream;
use rand::Rng;
use rand::seq::SliceRandom;

use super::distributions::chance;
use super::voxels::{channels_mut, label_maps_mut, shape};
use crate::store::Patch;

/// Mirrors data and labels along each allowed axis with probability 0.5 (batchgeneratorsv2 `MirrorTransform`).
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Axes to mirror: 0 = z, 1 = y, 2 = x.
    pub axes: Vec<usize>,
}

impl Mirror {
    /// Changes data and labels in place, in one pass for all axes.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        let mut flips = [false; 3];
        for &axis in &self.axes {
            flips[axis] ^= chance(0.5, rng);
        }
        channels_mut(patch).for_each(|channel| flip(channel, shape, flips));
        label_maps_mut(patch).for_each(|labels| flip(labels, shape, flips));
    }
}

/// Reverses some axes of a volume of this shape by swapping every row with its mirror image.
fn flip<T>(values: &mut [T], [nz, ny, nx]: [usize; 3], [flip_z, flip_y, flip_x]: [bool; 3]) {
    let image = |row: usize| {
        let (z, y) = (row / ny, row % ny);
        (if flip_z { nz - 1 - z } else { z }) * ny + if flip_y { ny - 1 - y } else { y }
    };
    for row in 0..nz * ny {
        let other = image(row);
        if other < row {
            continue;
        }
        let (head, tail) = values.split_at_mut(other * nx);
        let second = &mut tail[..nx];
        if other == row {
            if flip_x {
                second.reverse();
            }
            continue;
        }
        let first = &mut head[row * nx..][..nx];
        if flip_x {
            first.iter_mut().zip(second.iter_mut().rev()).for_each(|(a, b)| std::mem::swap(a, b));
        } else {
            first.swap_with_slice(second);
        }
    }
}

/// Returns the axes that share the most common extent, which `strong` rotates and transposes; empty if no two axes are
/// equal.
///
/// For a 2D patch only y and x are considered (nnU-Net v2, `nnUNetTrainerDA5.get_training_transforms`).
pub(super) fn equal_axes(patch_size: [usize; 3]) -> Vec<usize> {
    let first = usize::from(patch_size[0] == 1);
    let alike = |axis: usize| (first..3).filter(|&other| patch_size[other] == patch_size[axis]).count();
    let most = (first..3).map(alike).max().unwrap_or(0);
    if most > 1 { (first..3).filter(|&axis| alike(axis) == most).collect() } else { Vec::new() }
}

/// Rotates a patch by 0, 90, 180 or 270 degrees, with equal probability, in the plane of two random axes of `axes`.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.5 (batchgeneratorsv2 `Rot90Transform`).
#[derive(Clone, Debug)]
pub struct Rot90 {
    /// Candidate axes, at least two and of equal extent: 0 = z, 1 = y, 2 = x.
    pub axes: Vec<usize>,
}

impl Rot90 {
    /// Changes data and labels in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let quarters = rng.random_range(0..4);
        let mut axes = self.axes.clone();
        axes.shuffle(rng);
        let (a, b) = (axes[0].min(axes[1]), axes[0].max(axes[1]));
        rot90(patch, a, b, quarters);
    }
}

/// Permutes axes, all permutations with equal probability.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.5 (batchgeneratorsv2 `TransposeAxesTransform`).
#[derive(Clone, Debug)]
pub struct TransposeAxes {
    /// Axes to permute, of equal extent: 0 = z, 1 = y, 2 = x.
    pub axes: Vec<usize>,
}

impl TransposeAxes {
    /// Changes data and labels in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let mut shuffled = self.axes.clone();
        shuffled.shuffle(rng);
        let mut sources = [0, 1, 2];
        self.axes.iter().zip(shuffled).for_each(|(&axis, source)| sources[axis] = source);
        rearrange(patch, sources, [false; 3]);
    }
}

/// Rotates from axis `a` to axis `b`, as `numpy.rot90` does.
fn rot90(patch: &mut Patch, a: usize, b: usize, quarters: usize) {
    let mut sources = [0, 1, 2];
    let mut reversed = [false; 3];
    if quarters % 2 == 1 {
        sources.swap(a, b);
    }
    reversed[a] = matches!(quarters, 1 | 2);
    reversed[b] = matches!(quarters, 2 | 3);
    rearrange(patch, sources, reversed);
}

/// Moves axis `sources[axis]` to `axis`, then reverses some axes.
fn rearrange(patch: &mut Patch, sources: [usize; 3], reversed: [bool; 3]) {
    let before = shape(patch);
    patch.labels = rearranged(&patch.labels, sources, reversed);
    patch.previous = patch.previous.as_ref().map(|labels| rearranged(labels, sources, reversed));
    let [z, y, x] = sources;
    let mut data = patch.data.view().permuted_axes([0, z + 1, y + 1, x + 1]);
    (0..3).filter(|&axis| reversed[axis]).for_each(|axis| data.invert_axis(Axis(axis + 1)));
    patch.data = data.as_standard_layout().into_owned();
    debug_assert_eq!(shape(patch), before, "permuted axes have equal extents");
}

fn rearranged(labels: &Array3<i16>, sources: [usize; 3], reversed: [bool; 3]) -> Array3<i16> {
    let mut labels = labels.view().permuted_axes(sources);
    (0..3).filter(|&axis| reversed[axis]).for_each(|axis| labels.invert_axis(Axis(axis)));
    labels.as_standard_layout().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;

    #[test]
    fn equal_axes_match_nnunet() {
        assert_eq!(equal_axes([16, 16, 16]), [0, 1, 2]);
        assert_eq!(equal_axes([40, 56, 40]), [0, 2]);
        assert_eq!(equal_axes([28, 256, 256]), [1, 2]);
        assert_eq!(equal_axes([1, 64, 64]), [1, 2]);
        assert!(equal_axes([1, 1, 64]).is_empty() && equal_axes([8, 16, 32]).is_empty());
    }

    #[test]
    fn rot90_matches_numpy() {
        // `numpy.rot90(numpy.arange(4).reshape(2, 2), k, (0, 1))`.
        for (quarters, expected) in [(0, [0, 1, 2, 3]), (1, [1, 3, 0, 2]), (2, [3, 2, 1, 0]), (3, [2, 0, 3, 1])] {
            let data = Array4::from_shape_vec((1, 1, 2, 2), vec![0.0, 1.0, 2.0, 3.0]).unwrap();
            let labels = Array3::from_shape_vec((1, 2, 2), vec![0, 1, 2, 3]).unwrap();
            let mut patch = Patch { data, previous: Some(labels.clone()), labels };
            rot90(&mut patch, 1, 2, quarters);
            assert_eq!(patch.labels.as_slice().unwrap(), expected);
            assert_eq!(patch.previous, Some(patch.labels.clone()));
            assert_eq!(patch.data.as_slice().unwrap(), expected.map(f32::from));
        }
    }
}
