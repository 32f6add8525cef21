//! Gamma curve on the intensities.

use std::ops::Range;

use super::draw::around_one;
use super::voxels::{channels_mut, mean, range, standard_deviation};
use crate::rng::Stream;
use crate::store::Patch;

/// Below this, a range or deviation counts as none.
const EPSILON: f32 = 1e-7;

/// Raises each channel, scaled to 0..1, to its own exponent, and restores its mean and standard deviation.
///
/// nnU-Net v2: once with probability 0.1 on the negated image and once with 0.3 on the image itself, exponent in
/// 0.7..1.5, below and above 1 equally often (batchgeneratorsv2 `GammaTransform` with `p_retain_stats` 1).
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
            let exponent = around_one(&self.exponent, rng) as f32;
            if self.inverted {
                negate(channel);
            }
            keeping_statistics(channel, |channel| power(channel, exponent));
            if self.inverted {
                negate(channel);
            }
        }
    }
}

fn negate(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = -*value);
}

/// `x ↦ x^exponent` on the values scaled to 0..1, scaled back.
fn power(values: &mut [f32], exponent: f32) {
    let (low, high) = range(values);
    let extent = high - low;
    let scale = 1.0 / extent.max(EPSILON);
    values.iter_mut().for_each(|value| *value = ((*value - low) * scale).powf(exponent) * extent + low);
}

/// Runs `change` and gives the values back the mean and standard deviation they had.
fn keeping_statistics(values: &mut [f32], change: impl FnOnce(&mut [f32])) {
    let mean_before = mean(values);
    let std_before = standard_deviation(values, mean_before);
    change(values);
    let mean_after = mean(values);
    let gain = std_before / standard_deviation(values, mean_after).max(EPSILON);
    values.iter_mut().for_each(|value| *value = (*value - mean_after) * gain + mean_before);
}
