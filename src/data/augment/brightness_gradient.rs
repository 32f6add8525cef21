//! Additive brightness that varies smoothly across the patch.

use std::ops::Range;

use rand::Rng;

use super::distributions::{chance, uniform};
use super::local::GaussianWeight;
use super::voxels::{channels_mut, shape};
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Adds a random Gaussian bump, positive or negative, to each channel.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.3, then each channel with probability 0.5; amplitude uniform in 1..5,
/// positive or negative with equal probability (batchgeneratorsv2 `BrightnessGradientAdditiveTransform`, without mean
/// centering).
#[derive(Clone, Debug)]
pub struct BrightnessGradient {
    /// Range of the amplitude, in units of the normalized intensity.
    pub height: Range<f64>,
    /// Probability of changing a channel.
    pub per_channel: f64,
}

impl BrightnessGradient {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for channel in channels_mut(patch) {
            if !chance(self.per_channel, rng) {
                continue;
            }
            let bump = GaussianWeight::draw(shape, rng);
            let sign = if rng.random::<bool>() { 1.0 } else { -1.0 };
            let height = (sign * uniform(&self.height, rng)) as f32;
            bump.for_rows(channel, |row, bump| {
                row.iter_mut().zip(bump).for_each(|(value, bump)| *value += height * bump)
            });
        }
    }
}
