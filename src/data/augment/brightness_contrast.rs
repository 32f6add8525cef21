//! Combined brightness and contrast change.

use std::ops::Range;

use super::distributions::uniform;
use super::voxels::data_mut;
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Intensity that a contrast change leaves unchanged (DALI's default for floating-point images).
const CENTRE: f32 = 0.5;

/// Scales all channels about 0.5 by a contrast factor, then multiplies them by a brightness factor.
///
/// NVIDIA's nnU-Net: probability 0.15, brightness uniform in 0.7..1.3, contrast in 0.65..1.5 (`dali_loader.py`,
/// `fn.brightness_contrast`).
#[derive(Clone, Debug)]
pub struct BrightnessContrast {
    /// Range of the brightness factor.
    pub brightness: Range<f64>,
    /// Range of the contrast factor.
    pub contrast: Range<f64>,
}

impl BrightnessContrast {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let brightness = uniform(&self.brightness, rng) as f32;
        let contrast = uniform(&self.contrast, rng) as f32;
        for value in data_mut(patch) {
            *value = brightness * (CENTRE + contrast * (*value - CENTRE));
        }
    }
}
