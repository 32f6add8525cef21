//! Multiplicative brightness.

use std::ops::Range;

use super::distributions::balanced_factor;
use super::voxels::channels_mut;
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Multiplies each channel by its own random factor.
///
/// nnU-Net v2: probability 0.15, factor in 0.75..1.25, below or above 1 with equal probability (batchgeneratorsv2
/// `MultiplicativeBrightnessTransform`).
#[derive(Clone, Debug)]
pub struct MultiplicativeBrightness {
    /// Range of the factor.
    pub factor: Range<f64>,
}

impl MultiplicativeBrightness {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        for channel in channels_mut(patch) {
            let factor = balanced_factor(&self.factor, rng) as f32;
            channel.iter_mut().for_each(|value| *value *= factor);
        }
    }
}
