//! Local intensity transforms: brightness and gamma weighted by a random Gaussian.

use std::ops::Range;

use nnunet_core::math::power;
use nnunet_core::rng::Stream;
use rand::Rng;

use super::distributions::{chance, uniform};
use super::voxels::{Statistics, channels_mut, shape};
use crate::store::Patch;

/// A random Gaussian weighting of a patch, rescaled to 0..1 within it.
///
/// Follows batchgeneratorsv2 `LocalTransform` with the settings of `nnUNetTrainerDA5`: each axis has its own center,
/// uniform in -0.5..1.5 times the patch extent, and its own standard deviation, log-uniform from a sixth of the extent
/// to the whole extent. The weight of a voxel is the mean of the Gaussian over its volume.
pub(super) struct GaussianWeight {
    /// Gaussian profile along each axis.
    axes: [Vec<f64>; 3],
    low: f64,
    scale: f64,
}

/// Range of the center, as a fraction of the patch extent.
const CENTRE: Range<f64> = -0.5..1.5;
/// The smallest standard deviation is the extent divided by this, in whole voxels.
const NARROWEST: usize = 6;

impl GaussianWeight {
    pub(super) fn draw(shape: [usize; 3], rng: &mut Stream) -> Self {
        let axes = shape.map(|extent| {
            if extent == 1 {
                return vec![1.0];
            }
            let centre = uniform(&CENTRE, rng) * extent as f64;
            let narrowest = ((extent / NARROWEST).max(1)) as f64;
            let std = uniform(&(narrowest.ln()..(extent as f64).ln()), rng).exp();
            gaussian(extent, centre, std)
        });
        Self::new(axes)
    }

    fn new(axes: [Vec<f64>; 3]) -> Self {
        let product = |of: fn(f64, f64) -> f64| -> f64 {
            axes.iter().map(|axis| axis.iter().copied().reduce(of).unwrap_or(1.0)).product()
        };
        let (low, high) = (product(f64::min), product(f64::max));
        let scale = if high > low { 1.0 / (high - low) } else { 0.0 };
        Self { axes, low, scale }
    }

    /// Calls `change` for each row of a volume with the weights along that row.
    pub(super) fn for_rows(&self, values: &mut [f32], mut change: impl FnMut(&mut [f32], &[f32])) {
        let [zs, ys, xs] = &self.axes;
        let mut bump = vec![0.0; xs.len()];
        let factors = zs.iter().flat_map(|z| ys.iter().map(move |y| z * y));
        for (row, factor) in values.chunks_exact_mut(xs.len()).zip(factors) {
            bump.iter_mut().zip(xs).for_each(|(bump, x)| *bump = ((factor * x - self.low) * self.scale) as f32);
            change(row, &bump);
        }
    }
}

/// Returns the mean of the Gaussian over each voxel by Simpson's rule; errors are below 1e-3 even for the narrowest
/// Gaussian.
fn gaussian(extent: usize, centre: f64, std: f64) -> Vec<f64> {
    let density = |at: f64| (-0.5 * ((at - centre) / std).powi(2)).exp();
    let mean = |voxel: usize| {
        let at = voxel as f64;
        (density(at - 0.5) + 4.0 * density(at) + density(at + 0.5)) / 6.0
    };
    (0..extent).map(mean).collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_match_the_reference() {
        // `LocalTransform._generate_kernel((2, 3, 5))` with centers of 0.4, -0.3 and 1.2 extents and widths of 1, 2 and
        // 3 voxels (scipy.stats.norm.cdf).
        let axes = [gaussian(2, 0.8, 1.0), gaussian(3, -0.9, 2.0), gaussian(5, 6.0, 3.0)];
        let bump = GaussianWeight::new(axes);
        let mut values = vec![0.0; 30];
        bump.for_rows(&mut values, |row, bump| row.copy_from_slice(bump));
        for (ours, expected) in values.iter().zip(BUMP) {
            assert!((ours - expected).abs() < 1e-3, "{values:?}");
        }
    }

    const BUMP: [f32; 30] = [
        0.08323, 0.19760, 0.35905, 0.55331, 0.74578, 0.04335, 0.12453, 0.23912, 0.37700, 0.51362, 0.00000, 0.04510,
        0.10877, 0.18538, 0.26129, 0.12691, 0.27762, 0.49038, 0.74637, 1.00000, 0.07435, 0.18132, 0.33234, 0.51403,
        0.69406, 0.01722, 0.07666, 0.16056, 0.26152, 0.36155,
    ];
}
