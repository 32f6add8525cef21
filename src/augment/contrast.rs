//! Contrast about the mean.

use std::ops::Range;

use multiversion::multiversion;

use super::draw::around_one;
use super::voxels::{Statistics, channels_mut};
use crate::rng::Stream;
use crate::store::Patch;

/// Stretches each channel about its mean by its own factor, then clips it to the range it had.
///
/// nnU-Net v2: probability 0.15, factor in 0.75..1.25, below and above 1 equally often
/// (batchgeneratorsv2 `ContrastTransform` with `preserve_range`).
#[derive(Clone, Debug)]
pub struct Contrast {
    /// Range of the factor.
    pub factor: Range<f64>,
}

impl Contrast {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        for channel in channels_mut(patch) {
            let factor = around_one(&self.factor, rng) as f32;
            let before = Statistics::of(channel);
            stretch(channel, factor, before);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn stretch(values: &mut [f32], factor: f32, before: Statistics) {
    let Statistics { mean, low, high, .. } = before;
    for value in values {
        // Not `clamp`, which panics where the range is empty or NaN.
        *value = ((*value - mean) * factor + mean).max(low).min(high);
    }
}
