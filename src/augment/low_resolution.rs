//! Simulation of a coarser scan.

use std::ops::Range;

use super::draw::{chance, uniform};
use super::voxels::{channels_mut, shape};
use crate::rng::Stream;
use crate::store::Patch;

/// Samples a channel down by nearest neighbours and up again linearly.
///
/// nnU-Net v2: probability 0.25, then each channel with probability 0.5; scale uniform in 0.5..1, one for all axes
/// (batchgeneratorsv2 `SimulateLowResolutionTransform`: `nearest-exact` down, `trilinear` up).
#[derive(Clone, Debug)]
pub struct LowResolution {
    /// Range of the scale.
    pub scale: Range<f64>,
    /// Probability with which a channel is changed.
    pub per_channel: f64,
    /// Keep the resolution along z (2D, and 3D patches augmented slice by slice).
    pub keep_z: bool,
}

impl LowResolution {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let full = shape(patch);
        let mut coarse = Vec::new();
        for channel in channels_mut(patch) {
            if !chance(self.per_channel, rng) {
                continue;
            }
            let scale = uniform(&self.scale, rng);
            let mut small = full.map(|extent| ((extent as f64 * scale).round_ties_even() as usize).max(1));
            if self.keep_z {
                small[0] = full[0];
            }
            sample_down(channel, full, &mut coarse, small);
            sample_up(&coarse, small, channel, full);
        }
    }
}

/// Nearest neighbours, as PyTorch's `nearest-exact`.
fn sample_down(fine: &[f32], full: [usize; 3], coarse: &mut Vec<f32>, small: [usize; 3]) {
    let [zs, ys, xs] = [0, 1, 2].map(|axis| {
        let step = full[axis] as f64 / small[axis] as f64;
        let nearest = |index| (((index as f64 + 0.5) * step) as usize).min(full[axis] - 1);
        (0..small[axis]).map(nearest).collect::<Vec<_>>()
    });
    coarse.clear();
    for z in zs {
        for &y in &ys {
            let row = &fine[(z * full[1] + y) * full[2]..][..full[2]];
            coarse.extend(xs.iter().map(|&x| row[x]));
        }
    }
}

/// Linear, as PyTorch's `trilinear` without aligned corners: four coarse rows make one, which is then stretched.
fn sample_up(coarse: &[f32], small: [usize; 3], fine: &mut [f32], full: [usize; 3]) {
    let [zs, ys, xs] = [0, 1, 2].map(|axis| Support::along(small[axis], full[axis]));
    let coarse_row = |z: usize, y: usize| &coarse[(z * small[1] + y) * small[2]..][..small[2]];
    let mut blended = vec![0.0; small[2]];
    for (z, plane) in zs.iter().zip(fine.chunks_exact_mut(full[1] * full[2])) {
        for (y, row) in ys.iter().zip(plane.chunks_exact_mut(full[2])) {
            let corners = [(z.low, y.low), (z.low, y.high), (z.high, y.low), (z.high, y.high)];
            let [a, b, c, d] = corners.map(|(z, y)| coarse_row(z, y));
            for (index, value) in blended.iter_mut().enumerate() {
                *value = z.blend(y.blend(a[index], b[index]), y.blend(c[index], d[index]));
            }
            for (value, x) in row.iter_mut().zip(&xs) {
                *value = x.blend(blended[x.low], blended[x.high]);
            }
        }
    }
}

/// The two coarse voxels that a fine one lies between.
struct Support {
    low: usize,
    high: usize,
    /// Weight of `high`.
    fraction: f32,
}

impl Support {
    /// The support of each fine voxel of an axis.
    fn along(small: usize, full: usize) -> Vec<Self> {
        let step = small as f64 / full as f64;
        let support = |index| {
            let position = ((index as f64 + 0.5) * step - 0.5).max(0.0);
            let low = (position as usize).min(small - 1);
            Self { low, high: (low + 1).min(small - 1), fraction: (position - low as f64) as f32 }
        };
        (0..full).map(support).collect()
    }

    fn blend(&self, low: f32, high: f32) -> f32 {
        low + self.fraction * (high - low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_goes_down_to_nearest_voxels_and_up_linearly() {
        // Worked out by hand: sources (i + 0.5) * 7/4 down, (i + 0.5) * 4/7 - 0.5 up, clamped at the ends.
        let mut line: Vec<f32> = (0..7).map(|value| value as f32).collect();
        let mut coarse = Vec::new();
        sample_down(&line, [1, 1, 7], &mut coarse, [1, 1, 4]);
        assert_eq!(coarse, [0.0, 2.0, 4.0, 6.0]);
        sample_up(&coarse, [1, 1, 4], &mut line, [1, 1, 7]);
        let expected = [0.0, 0.714_285_7, 1.857_142_9, 3.0, 4.142_857, 5.285_714_4, 6.0];
        for (value, expected) in line.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{line:?}");
        }
    }

    #[test]
    fn an_unchanged_size_changes_nothing() {
        let volume: Vec<f32> = (0..60).map(|value| (value as f32).sin()).collect();
        let (mut coarse, mut result) = (Vec::new(), vec![0.0; 60]);
        sample_down(&volume, [3, 4, 5], &mut coarse, [3, 4, 5]);
        sample_up(&coarse, [3, 4, 5], &mut result, [3, 4, 5]);
        assert_eq!(result, volume);
    }
}
