//! Additive Gaussian noise.

use std::ops::Range;

use rand::Rng;
use rand_distr::StandardNormal;

use super::draw::uniform;
use super::voxels::data_mut;
use crate::rng::Stream;
use crate::store::Patch;

/// Adds independent Gaussian noise to every voxel, of one strength for all channels.
///
/// nnU-Net v2: probability 0.1, strength uniform in 0..0.1. Its parameter is called a variance but is used as the
/// standard deviation (batchgeneratorsv2 `GaussianNoiseTransform`); so it is here.
#[derive(Clone, Debug)]
pub struct GaussianNoise {
    /// Range of the standard deviation, in units of the normalised intensity.
    pub std: Range<f64>,
}

impl GaussianNoise {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let std = uniform(&self.std, rng) as f32;
        for value in data_mut(patch) {
            *value += std * rng.sample::<f32, _>(StandardNormal);
        }
    }
}
