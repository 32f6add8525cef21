//! Gaussian blur.

use std::ops::Range;

use multiversion::multiversion;

use super::distributions::{chance, uniform};
use super::voxels::{channels_mut, shape};
use crate::store::Patch;
use nnunet_core::rng::Stream;

/// Total kernel width in standard deviations (batchgeneratorsv2 `blur_dimension`).
const TRUNCATE: f64 = 6.0;
/// Number of values accumulated in registers at a time.
const BLOCK: usize = 16;

/// Smooths a channel with a separable Gaussian; borders are reflected.
///
/// nnU-Net v2: probability 0.2, then each channel with probability 0.5; standard deviation uniform in 0.5..1 voxels,
/// drawn per channel and axis (batchgeneratorsv2 `GaussianBlurTransform`). `nnUNetTrainerDA5`: with probability 0.2
/// either this or a median filter, chosen with equal probability; 0.3..1.5 voxels, one value for all axes. NVIDIA's
/// nnU-Net: probability 0.15, 0.5..1.5 voxels, one value for the whole patch.
#[derive(Clone, Debug)]
pub struct GaussianBlur {
    /// Range of the standard deviation in voxels.
    pub sigma: Range<f64>,
    /// Probability of blurring a channel.
    pub per_channel: f64,
    /// Scope for which one standard deviation is drawn.
    pub widths: BlurWidths,
}

/// Scope for which one standard deviation of a blur is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlurWidths {
    /// One per axis of each channel.
    PerAxis,
    /// One per channel.
    PerChannel,
    /// One for the whole patch.
    One,
}

impl GaussianBlur {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        let mut scratch = Vec::new();
        let of_patch = (self.widths == BlurWidths::One).then(|| uniform(&self.sigma, rng));
        for channel in channels_mut(patch) {
            if !chance(self.per_channel, rng) {
                continue;
            }
            let of_channel = match self.widths {
                BlurWidths::PerChannel => Some(uniform(&self.sigma, rng)),
                BlurWidths::PerAxis | BlurWidths::One => of_patch,
            };
            for (axis, &extent) in shape.iter().enumerate() {
                if extent > 1 {
                    let inner = shape[axis + 1..].iter().product();
                    let sigma = of_channel.unwrap_or_else(|| uniform(&self.sigma, rng));
                    convolve(channel, &mut scratch, extent, inner, &kernel(sigma));
                }
            }
        }
    }
}

/// Returns a normalized Gaussian kernel of odd length.
fn kernel(sigma: f64) -> Vec<f32> {
    let length = nearest_odd(sigma * TRUNCATE + 0.5);
    let centre = (length / 2) as f64;
    let weights: Vec<f64> = (0..length).map(|tap| (-0.5 * ((tap as f64 - centre) / sigma).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| (weight / sum) as f32).collect()
}

/// Returns the odd number nearest to `value`, the larger one on a tie.
fn nearest_odd(value: f64) -> usize {
    2 * (value / 2.0).floor() as usize + 1
}

/// Convolves along an axis of this `extent`, with a stride of `inner` values.
fn convolve(values: &mut [f32], scratch: &mut Vec<f32>, extent: usize, inner: usize, kernel: &[f32]) {
    let radius = kernel.len() / 2;
    let sources: Vec<usize> = (0..extent + 2 * radius).map(|shifted| reflect(shifted, radius, extent)).collect();
    let moves: Vec<usize> = (0..kernel.len()).collect();
    for block in values.chunks_exact_mut(extent * inner) {
        scratch.clear();
        if inner == 1 {
            // Materialize the reflected borders, so that every kernel tap reads a contiguous shifted row.
            scratch.extend(sources.iter().map(|&source| block[source]));
            weighted_sum(block, scratch, &moves[..kernel.len()], 1, kernel);
        } else {
            scratch.extend_from_slice(block);
            for (row, sources) in block.chunks_exact_mut(inner).zip(sources.windows(kernel.len())) {
                weighted_sum(row, scratch, sources, inner, kernel);
            }
        }
    }
}

/// Computes, over all taps, the sum of `kernel[tap]` times the row of `values` starting at `starts[tap] * unit`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn weighted_sum(sums: &mut [f32], values: &[f32], starts: &[usize], unit: usize, kernel: &[f32]) {
    let mut at = 0;
    let mut blocks = sums.chunks_exact_mut(BLOCK);
    for block in &mut blocks {
        let mut sum = [0.0; BLOCK];
        for (&start, &weight) in starts.iter().zip(kernel) {
            let values = &values[start * unit + at..][..BLOCK];
            sum.iter_mut().zip(values).for_each(|(sum, &value)| *sum += weight * value);
        }
        block.copy_from_slice(&sum);
        at += BLOCK;
    }
    let rest = blocks.into_remainder();
    rest.fill(0.0);
    for (&start, &weight) in starts.iter().zip(kernel) {
        let values = &values[start * unit + at..][..rest.len()];
        rest.iter_mut().zip(values).for_each(|(sum, &value)| *sum += weight * value);
    }
}

/// Returns position `shifted - radius`, reflected about the first and last voxel until it is within `0..extent`.
fn reflect(shifted: usize, radius: usize, extent: usize) -> usize {
    let period = 2 * (extent - 1);
    let position = (shifted as isize - radius as isize).rem_euclid(period as isize) as usize;
    position.min(period - position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_normalised_and_as_long_as_the_reference() {
        // Kernel lengths from batchgeneratorsv2's `_compute_kernel_size(sigma, truncate=6)`.
        for (sigma, length) in [(0.3, 3), (0.5, 3), (0.6, 5), (0.75, 5), (0.95, 7), (1.0, 7), (1.4, 9), (1.5, 9)] {
            let kernel = kernel(sigma);
            assert_eq!(kernel.len(), length, "sigma {sigma}");
            assert!((kernel.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn borders_reflect_without_repeating_the_edge() {
        let reflected: Vec<usize> = (0..8).map(|shifted| reflect(shifted, 2, 4)).collect();
        assert_eq!(reflected, [2, 1, 0, 1, 2, 3, 2, 1]);
        assert_eq!((0..7).map(|shifted| reflect(shifted, 3, 2)).collect::<Vec<_>>(), [1, 0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn an_impulse_becomes_the_kernel_along_the_chosen_axis() {
        let kernel = kernel(0.7);
        let mut input = vec![0.0; 7 * 3];
        input[3 * 3 + 1] = 1.0;
        let mut output = input;
        convolve(&mut output, &mut Vec::new(), 7, 3, &kernel);
        let column: Vec<f32> = (1..6).map(|row| output[row * 3 + 1]).collect();
        assert_eq!(column, kernel);
        assert_eq!(output.iter().filter(|&&value| value != 0.0).count(), kernel.len());
    }

    #[test]
    fn a_blurred_volume_is_that_of_scipy() {
        // `scipy.ndimage.gaussian_filter` with sigma (0.7, 0.8, 0.9), radius 2 and mode `mirror`.
        let shape = [3, 4, 5];
        let value = |i: usize| ((0.7 * i as f64).sin() + 0.3 * (2.1 * i as f64).cos()) as f32;
        let mut values: Vec<f32> = (0..60).map(value).collect();
        for (axis, sigma) in [0.7, 0.8, 0.9].into_iter().enumerate() {
            let inner = shape[axis + 1..].iter().product();
            convolve(&mut values, &mut Vec::new(), shape[axis], inner, &kernel(sigma));
        }
        for (ours, expected) in values.iter().zip(BLURRED) {
            assert!((ours - expected).abs() < 2e-5, "{ours} instead of {expected}");
        }
    }

    const BLURRED: [f32; 60] = [
        0.03780, 0.06039, 0.08082, 0.10433, 0.11980, -0.07463, -0.05989, -0.03991, -0.00890, 0.01901, 0.05958, 0.05482,
        0.04124, -0.00607, -0.04158, -0.01091, 0.00818, 0.07243, 0.11957, 0.11702, 0.07587, 0.09582, 0.08637, 0.03672,
        0.01565, -0.05960, -0.03170, 0.01663, 0.03893, 0.04488, 0.04590, 0.01867, -0.01859, -0.04111, -0.05483,
        0.08528, 0.08540, 0.07949, 0.07672, 0.06993, 0.08141, 0.08061, 0.04871, -0.04008, -0.09030, -0.00649, 0.01421,
        0.06103, 0.07271, 0.05927, 0.00699, -0.02365, -0.06785, -0.06216, -0.04653, 0.12570, 0.11714, 0.05518,
        -0.00907, -0.02586,
    ];
}
