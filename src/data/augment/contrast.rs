//! Contrast change about the channel mean.

use std::ops::Range;

use multiversion::multiversion;

use super::distributions::{balanced_factor, chance};
use super::voxels::{Statistics, channels_mut};
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Scales each channel about its mean by its own random factor and optionally clips it to its original range.
///
/// nnU-Net v2: probability 0.15, factor in 0.75..1.25, below or above 1 with equal probability, clipped
/// (batchgeneratorsv2 `ContrastTransform`). `nnUNetTrainerDA5`: probability 0.2, then each channel with probability
/// 0.5; factor in 0.5..2, clipped with probability 0.5.
#[derive(Clone, Debug)]
pub struct Contrast {
    /// Range of the factor.
    pub factor: Range<f64>,
    /// Probability of changing a channel.
    pub per_channel: f64,
    /// Clip each channel to its original intensity range.
    pub keep_range: bool,
}

impl Contrast {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        for channel in channels_mut(patch) {
            if self.per_channel < 1.0 && !chance(self.per_channel, rng) {
                continue;
            }
            let factor = balanced_factor(&self.factor, rng) as f32;
            let mut before = Statistics::compute(channel);
            if !self.keep_range {
                (before.low, before.high) = (f32::NEG_INFINITY, f32::INFINITY);
            }
            stretch(channel, factor, before);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn stretch(values: &mut [f32], factor: f32, before: Statistics) {
    let Statistics { mean, low, high, .. } = before;
    for value in values {
        // Not `clamp`, which panics when the range is empty or NaN.
        *value = ((*value - mean) * factor + mean).max(low).min(high);
    }
}
