//! Transforms that overwrite a part of the patch: the outside of the nonzero mask, and random boxes.

use std::ops::Range;

use nnunet_core::rng::Stream;
use rand::Rng;

use super::distributions::chance;
use super::voxels::{channels_mut, shape};
use crate::store::Patch;

/// Resets voxels outside the nonzero mask to 0 in channels that were normalized inside the mask only, because noise,
/// brightness and contrast change them (nnU-Net v2 `MaskImageTransform`; a label of -1 marks the outside).
#[derive(Clone, Debug)]
pub struct MaskOutside {
    /// Per channel: true if it was normalized inside the mask (`use_mask_for_norm` of the plans).
    pub channels: Vec<bool>,
}

impl MaskOutside {
    /// Changes the intensities in place; makes no random draws.
    pub fn apply(&self, patch: &mut Patch, _: &mut Stream) {
        debug_assert_eq!(patch.data.shape()[1..], shape(patch));
        let Patch { data, labels, .. } = patch;
        for (mut channel, _) in data.outer_iter_mut().zip(&self.channels).filter(|(_, masked)| **masked) {
            channel.zip_mut_with(labels, |value, &label| {
                if label < 0 {
                    *value = 0.0;
                }
            });
        }
    }
}

/// Overwrites random boxes of a channel with the mean intensity of each box.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.4, then each channel with probability 0.5; 1 to 4 boxes, each from a
/// tenth to a third of the patch along each axis (batchgeneratorsv2 `BlankRectangleTransform`).
#[derive(Clone, Debug)]
pub struct BlankRectangle {
    /// Range of the number of boxes.
    pub count: Range<usize>,
    /// Range of the box extent along z, y and x, in voxels.
    pub size: [Range<usize>; 3],
    /// Probability of changing a channel.
    pub per_channel: f64,
}

impl BlankRectangle {
    /// Creates the transform with the box sizes of `nnUNetTrainerDA5` for patches of extent `(z, y, x)`.
    pub fn for_patch(patch_size: [usize; 3]) -> Self {
        let extents = |extent: usize| {
            let low = (extent / 10).max(1);
            low..(extent / 3).max(low + 1)
        };
        Self { count: 1..5, size: patch_size.map(extents), per_channel: 0.5 }
    }

    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for channel in channels_mut(patch) {
            let count = rng.random_range(self.count.clone());
            if !chance(self.per_channel, rng) {
                continue;
            }
            for _ in 0..count {
                let place: [Range<usize>; 3] = std::array::from_fn(|axis| {
                    let size = rng.random_range(self.size[axis].clone()).min(shape[axis]);
                    let low = rng.random_range(0..=shape[axis] - size);
                    low..low + size
                });
                blank(channel, shape, &place);
            }
        }
    }
}

fn blank(values: &mut [f32], [_, ny, nx]: [usize; 3], [z, y, x]: &[Range<usize>; 3]) {
    let rows = || z.clone().flat_map(|z| y.clone().map(move |y| (z * ny + y) * nx));
    let (mut sum, mut count) = (0.0, 0);
    for row in rows() {
        let part = &values[row + x.start..row + x.end];
        sum += part.iter().map(|value| f64::from(*value)).sum::<f64>();
        count += part.len();
    }
    for row in rows() {
        values[row + x.start..row + x.end].fill((sum / count as f64) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangle_sizes_match_nnunet() {
        let sizes = BlankRectangle::for_patch([40, 56, 1]).size;
        // Python ranges also exclude their end; for an axis of one voxel nnU-Net's range is empty.
        assert_eq!(sizes, [4..13, 5..18, 1..2]);
    }

    #[test]
    fn a_box_is_set_to_its_mean_and_the_rest_is_unchanged() {
        let mut values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        blank(&mut values, [2, 3, 4], &[0..2, 1..3, 2..4]);
        for (index, value) in values.iter().enumerate() {
            let (y, x) = (index / 4 % 3, index % 4);
            assert_eq!(*value, if y >= 1 && x >= 2 { 14.5 } else { index as f32 });
        }
    }
}
