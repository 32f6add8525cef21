//! Brightness and contrast in one.

use std::ops::Range;

use super::draw::uniform;
use super::voxels::data_mut;
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Intensities keep their distance from this one but for the contrast (DALI's default for floating-point images).
const CENTRE: f32 = 0.5;

/// Stretches all channels about 0.5 by one factor and multiplies them by another.
///
/// NVIDIA's nnU-Net: probability 0.15, brightness uniform in 0.7..1.3, contrast in 0.65..1.5 (`dali_loader.py`,
/// `fn.brightness_contrast`).
#[derive(Clone, Debug)]
pub struct BrightnessContrast {
    /// Range of the factor of the intensities.
    pub brightness: Range<f64>,
    /// Range of the factor of their distance from 0.5.
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
