//! Gamma correction of the intensities.

use std::ops::Range;

use multiversion::multiversion;

use super::distributions::balanced_factor;
use super::voxels::{Statistics, channels_mut};
use crate::store::Patch;
use nnunet_core::math::power;
use nnunet_core::rng::Stream;

/// Ranges and standard deviations below this are treated as zero.
const EPSILON: f32 = 1e-7;

/// Applies a gamma curve to each channel, scaled to 0..1, with its own exponent, then restores its mean and standard
/// deviation.
///
/// nnU-Net v2: once with probability 0.1 on the negated image and once with probability 0.3 on the image, exponent in
/// 0.7..1.5, below or above 1 with equal probability (batchgeneratorsv2 `GammaTransform` with `p_retain_stats` 1).
/// `nnUNetTrainerDA5`: twice with probability 0.1, both times on the negated image.
#[derive(Clone, Debug)]
pub struct Gamma {
    /// Range of the exponent.
    pub exponent: Range<f64>,
    /// Apply the curve to the negated image.
    pub inverted: bool,
}

impl Gamma {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        for channel in channels_mut(patch) {
            let exponent = balanced_factor(&self.exponent, rng) as f32;
            let before = Statistics::compute(channel);
            let (sign, before) = if self.inverted { (-1.0, before.negated()) } else { (1.0, before) };
            apply_gamma(channel, sign, exponent, before);
            let after = Statistics::compute(channel);
            let gain = before.std / after.std.max(EPSILON);
            restore(channel, after.mean, sign * gain, sign * before.mean);
        }
    }
}

/// Applies the gamma curve to `sign * values`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn apply_gamma(values: &mut [f32], sign: f32, exponent: f32, before: Statistics) {
    let (low, extent) = (before.low, before.high - before.low);
    let scale = 1.0 / extent.max(EPSILON);
    for value in values {
        *value = power((sign * *value - low) * scale, exponent) * extent + low;
    }
}

/// Moves the mean of the values from `from` to `to` and scales their deviations from it by `gain`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn restore(values: &mut [f32], from: f32, gain: f32, to: f32) {
    for value in values {
        *value = (*value - from) * gain + to;
    }
}
