//! Gamma correction of a part of the patch.

use std::ops::Range;

use super::distributions::{chance, uniform};
use super::local::GaussianWeight;
use super::voxels::{Statistics, channels_mut, shape};
use crate::store::Patch;
use nnunet_core::math::power;
use nnunet_core::rng::Stream;

/// Ranges below this are treated as zero.
const EPSILON: f32 = 1e-8;

/// Blends a channel with its gamma-corrected version, weighted by a random Gaussian.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.3, then each channel with probability 0.5; exponent uniform in
/// 0.01..0.8 or in 1.5..4, with equal probability (batchgeneratorsv2 `LocalGammaTransform`).
#[derive(Clone, Debug)]
pub struct LocalGamma {
    /// Exponent ranges: one that brightens and one that darkens.
    pub exponents: [Range<f64>; 2],
    /// Probability of changing a channel.
    pub per_channel: f64,
}

impl LocalGamma {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for channel in channels_mut(patch) {
            if !chance(self.per_channel, rng) {
                continue;
            }
            let bump = GaussianWeight::draw(shape, rng);
            let exponent = uniform(&self.exponents[usize::from(chance(0.5, rng))], rng) as f32;
            let Statistics { low, high, .. } = Statistics::compute(channel);
            let extent = (high - low).max(EPSILON);
            bump.for_rows(channel, |row, bump| {
                for (value, bump) in row.iter_mut().zip(bump) {
                    let before = (*value - low) / extent;
                    let after = power(before, exponent);
                    *value = (before + bump * (after - before)) * extent + low;
                }
            });
        }
    }
}
