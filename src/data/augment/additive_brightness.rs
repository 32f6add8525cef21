//! Additive brightness.

use rand::Rng;
use rand_distr::StandardNormal;

use super::distributions::chance;
use super::voxels::channels_mut;
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Adds a random offset, drawn from a normal distribution, to each channel.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.1, then each channel with probability 0.5; mean 0, standard deviation
/// 0.5 (batchgeneratorsv2 `BrightnessAdditiveTransform`).
#[derive(Clone, Debug)]
pub struct AdditiveBrightness {
    /// Standard deviation, in units of the normalized intensity.
    pub std: f64,
    /// Probability of changing a channel.
    pub per_channel: f64,
}

impl AdditiveBrightness {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        for channel in channels_mut(patch) {
            let deviate: f64 = rng.sample(StandardNormal);
            if chance(self.per_channel, rng) {
                let shift = (self.std * deviate) as f32;
                channel.iter_mut().for_each(|value| *value += shift);
            }
        }
    }
}
