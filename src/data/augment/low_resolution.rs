//! Simulation of a low-resolution scan.

use std::ops::Range;

use multiversion::multiversion;

use super::distributions::{chance, uniform};
use super::voxels::{channels_mut, shape};
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Downsamples a channel with nearest-neighbor interpolation and upsamples it again linearly.
///
/// nnU-Net v2: probability 0.25, then each channel with probability 0.5; scale uniform in 0.5..1, one for all axes
/// (batchgeneratorsv2 `SimulateLowResolutionTransform`: `nearest-exact` down, `trilinear` up). `nnUNetTrainerDA5`:
/// probability 0.15, scale in 0.25..1.
#[derive(Clone, Debug)]
pub struct LowResolution {
    /// Range of the scale.
    pub scale: Range<f64>,
    /// Probability of changing a channel.
    pub per_channel: f64,
    /// Keep the resolution along z (2D patches, and 3D patches augmented slice by slice).
    pub keep_z: bool,
}

impl LowResolution {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let full = shape(patch);
        let mut rows = Vec::new();
        for channel in channels_mut(patch) {
            if !chance(self.per_channel, rng) {
                continue;
            }
            let scale = uniform(&self.scale, rng);
            let mut small = full.map(|extent| ((extent as f64 * scale).round_ties_even() as usize).max(1));
            if self.keep_z {
                small[0] = full[0];
            }
            downsample_and_upsample(channel, full, small, &mut rows);
        }
    }
}

/// Downsamples to `small` with nearest-neighbor interpolation (PyTorch `nearest-exact`) and upsamples linearly (PyTorch
/// `trilinear` with `align_corners=False`).
///
/// Both steps run at once along x, so the rows of the coarse volume keep their full length; they are then blended row
/// by row.
fn downsample_and_upsample(values: &mut [f32], full: [usize; 3], small: [usize; 3], rows: &mut Vec<f32>) {
    let [zs, ys, xs] = [0, 1, 2].map(|axis| LinearWeights::along(small[axis], full[axis]));
    let [near_z, near_y, near_x] = [0, 1, 2].map(|axis| nearest(small[axis], full[axis]));
    let [_, ny, nx] = full;
    rows.clear();
    for z in near_z {
        for &y in &near_y {
            let row = &values[(z * ny + y) * nx..][..nx];
            rows.extend(xs.iter().map(|x| x.blend(row[near_x[x.low]], row[near_x[x.high]])));
        }
    }
    let row = |z: usize, y: usize| &rows[(z * small[1] + y) * nx..][..nx];
    for (z, plane) in zs.iter().zip(values.chunks_exact_mut(ny * nx)) {
        for (y, target) in ys.iter().zip(plane.chunks_exact_mut(nx)) {
            let [a, b, c, d] =
                [(z.low, y.low), (z.low, y.high), (z.high, y.low), (z.high, y.high)].map(|(z, y)| row(z, y));
            blend_rows([a, b, c, d], z.fraction, y.fraction, target);
        }
    }
}

/// Blends four rows: the first two and the last two along y, then both results along z.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn blend_rows(rows: [&[f32]; 4], z: f32, y: f32, target: &mut [f32]) {
    let [a, b, c, d] = rows.map(|row| &row[..target.len()]);
    for (index, value) in target.iter_mut().enumerate() {
        let low = a[index] + y * (b[index] - a[index]);
        let high = c[index] + y * (d[index] - c[index]);
        *value = low + z * (high - low);
    }
}

/// Returns the index of the fine voxel that each coarse voxel of an axis samples.
fn nearest(small: usize, full: usize) -> Vec<usize> {
    let step = full as f64 / small as f64;
    (0..small).map(|index| (((index as f64 + 0.5) * step) as usize).min(full - 1)).collect()
}

/// The two coarse voxels around a fine voxel, with their weights.
struct LinearWeights {
    low: usize,
    high: usize,
    /// Weight of `high`.
    fraction: f32,
}

impl LinearWeights {
    /// Computes the support of each fine voxel of an axis.
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
    fn a_ramp_is_downsampled_by_nearest_and_upsampled_linearly() {
        // Computed by hand: sources (i + 0.5) * 7/4 down, (i + 0.5) * 4/7 - 0.5 up, clamped at the ends.
        let mut line: Vec<f32> = (0..7).map(|value| value as f32).collect();
        assert_eq!(nearest(4, 7), [0, 2, 4, 6]);
        downsample_and_upsample(&mut line, [1, 1, 7], [1, 1, 4], &mut Vec::new());
        let expected = [0.0, 0.714_285_7, 1.857_142_9, 3.0, 4.142_857, 5.285_714_4, 6.0];
        for (value, expected) in line.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{line:?}");
        }
    }

    #[test]
    fn an_unchanged_size_changes_nothing() {
        let volume: Vec<f32> = (0..60).map(|value| (value as f32).sin()).collect();
        let mut result = volume.clone();
        downsample_and_upsample(&mut result, [3, 4, 5], [3, 4, 5], &mut Vec::new());
        assert_eq!(result, volume);
    }

    #[test]
    fn all_axes_are_processed_equally() {
        let line = |axis: usize| {
            let mut shape = [1; 3];
            shape[axis] = 9;
            let mut values: Vec<f32> = (0..9).map(|value| (value as f32 * 1.3).cos()).collect();
            let mut small = [1; 3];
            small[axis] = 5;
            downsample_and_upsample(&mut values, shape, small, &mut Vec::new());
            values
        };
        let along_x = line(2);
        assert!(along_x != (0..9).map(|value| (value as f32 * 1.3).cos()).collect::<Vec<_>>());
        for axis in [0, 1] {
            assert!(line(axis).iter().zip(&along_x).all(|(a, b)| (a - b).abs() < 1e-6), "axis {axis}");
        }
    }

    #[test]
    fn downsampling_and_upsampling_match_pytorch() {
        // `torch.nn.functional.interpolate` to (3, 4, 4) by `nearest-exact`, and back by `trilinear`.
        let value = |i: usize| ((0.7 * i as f64).sin() + 0.3 * (2.1 * i as f64).cos()) as f32;
        let mut values: Vec<f32> = (0..120).map(value).collect();
        downsample_and_upsample(&mut values, [4, 5, 6], [3, 4, 4], &mut Vec::new());
        for (ours, expected) in values.iter().zip(COARSE) {
            assert!((ours - expected).abs() < 2e-5, "{ours} instead of {expected}");
        }
    }

    const COARSE: [f32; 120] = [
        0.30000, 0.56919, 0.89250, 1.10903, 0.33486, -0.49344, -0.31022, -0.29867, -0.14419, 0.42752, 0.51027, 0.45009,
        -0.11982, -0.03463, 0.16382, 0.61681, 0.45428, 0.17852, 0.05539, 0.22508, 0.47976, 0.81969, 0.41125, -0.08216,
        -0.59028, -0.65290, -0.53843, 0.16991, 0.61689, 0.88679, -0.28333, -0.17275, 0.06244, 0.56090, 0.54743,
        0.40934, 0.23639, -0.10170, -0.36542, -0.06796, 0.05132, 0.09623, 0.08631, -0.11064, -0.22242, 0.11830,
        0.19910, 0.19472, -0.07110, -0.12746, -0.08695, 0.30057, 0.34996, 0.30247, 0.43152, -0.07478, -0.53239,
        -0.33762, -0.13899, 0.01095, -0.23458, -0.11852, 0.10368, 0.52821, 0.52063, 0.40692, 0.22162, -0.06277,
        -0.28544, -0.03852, 0.08011, 0.13702, 0.08688, -0.06898, -0.15449, 0.12696, 0.21075, 0.22418, -0.05453,
        -0.08227, -0.03022, 0.28897, 0.34420, 0.31962, 0.38612, -0.04304, -0.43493, -0.28584, -0.08976, 0.06905,
        0.42999, 0.71380, 1.00246, 1.02186, 0.26340, -0.49990, -0.34961, -0.19487, 0.06911, 0.50601, 0.58706, 0.55888,
        -0.11831, 0.07647, 0.34497, 0.63988, 0.48534, 0.25708, 0.09957, 0.34559, 0.63104, 0.78877, 0.39589, -0.03642,
        -0.71133, -0.56825, -0.27853, 0.30800, 0.74818, 1.04173,
    ];
}
