//! Sharpening.

use std::ops::Range;

use super::distributions::{chance, uniform};
use super::voxels::{channels_mut, shape};
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Adds the Laplacian of a channel (each voxel minus its neighbors along the axes), times a random strength, to it.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.2, then each channel with probability 0.5; strength uniform in
/// 0.1..1, drawn per channel (batchgeneratorsv2 `SharpeningTransform`).
#[derive(Clone, Debug)]
pub struct Sharpen {
    /// Range of the strength.
    pub strength: Range<f64>,
    /// Probability of sharpening a channel.
    pub per_channel: f64,
}

impl Sharpen {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for channel in channels_mut(patch) {
            let strength = uniform(&self.strength, rng) as f32;
            if chance(self.per_channel, rng) {
                sharpen(channel, shape, strength);
            }
        }
    }
}

/// Sharpens a volume in place; border voxels are repeated outside it.
fn sharpen(values: &mut [f32], shape: [usize; 3], strength: f32) {
    let before = values.to_vec();
    for (axis, &extent) in shape.iter().enumerate() {
        let inner: usize = shape[axis + 1..].iter().product();
        for (number, row) in values.chunks_exact_mut(inner).enumerate() {
            let at = number % extent;
            let row_of = |shift: usize| &before[(number - at + shift) * inner..][..inner];
            let (low, here, high) = (row_of(at.saturating_sub(1)), row_of(at), row_of((at + 1).min(extent - 1)));
            for (((value, here), low), high) in row.iter_mut().zip(here).zip(low).zip(high) {
                *value += strength * (2.0 * here - low - high);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_raised_and_its_neighbours_are_lowered() {
        let mut values = vec![0.0; 27];
        values[13] = 1.0;
        sharpen(&mut values, [3, 3, 3], 0.5);
        assert_eq!(values[13], 4.0);
        for neighbour in [4, 10, 12, 14, 16, 22] {
            assert_eq!(values[neighbour], -0.5);
        }
        assert_eq!(values.iter().filter(|value| **value != 0.0).count(), 7);
    }

    #[test]
    fn borders_repeat_and_a_slice_stays_in_its_plane() {
        // For 1 2 4 8: 4 (2 - 1 - 4) and so on, with the end voxels repeated.
        let mut values = vec![1.0, 2.0, 4.0, 8.0];
        sharpen(&mut values, [1, 1, 4], 1.0);
        assert_eq!(values, [0.0, 1.0, 2.0, 12.0]);
    }
}
