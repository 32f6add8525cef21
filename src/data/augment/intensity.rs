//! Global intensity transforms: brightness, contrast and gamma of whole channels.

use std::ops::Range;

use multiversion::multiversion;
use nnunet_core::math::power;
use nnunet_core::rng::Stream;
use rand::Rng;
use rand_distr::StandardNormal;

use super::distributions::{balanced_factor, chance, uniform};
use super::voxels::{Statistics, channels_mut, data_mut};
use crate::store::Patch;

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
