//! Neighborhood filters: Gaussian blur, sharpening and median.

use std::ops::Range;

use multiversion::multiversion;
use nnunet_core::rng::Stream;
use rand::Rng;

use super::distributions::{chance, uniform};
use super::voxels::{channels_mut, shape};
use crate::store::Patch;

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

/// Adds the Laplacian of a channel (each voxel minus its neighbors along the axes), times a random strength, to it.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: probability 0.2, then each channel with probability 0.5; strength uniform in
/// 0.1..1, drawn per channel (batchgeneratorsv2 `SharpeningTransform`).
#[derive(Clone, Debug)]
pub struct Sharpen {
    /// Range of the strength.
    pub strength: Range<f64>,
    /// Probability of sharpening a channel.
    pub per_channel: f64,
}

impl Sharpen {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for channel in channels_mut(patch) {
            let strength = uniform(&self.strength, rng) as f32;
            if chance(self.per_channel, rng) {
                sharpen(channel, shape, strength);
            }
        }
    }
}

/// Sharpens a volume in place; border voxels are repeated outside it.
fn sharpen(values: &mut [f32], shape: [usize; 3], strength: f32) {
    let before = values.to_vec();
    for (axis, &extent) in shape.iter().enumerate() {
        let inner: usize = shape[axis + 1..].iter().product();
        for (number, row) in values.chunks_exact_mut(inner).enumerate() {
            let at = number % extent;
            let row_of = |shift: usize| &before[(number - at + shift) * inner..][..inner];
            let (low, here, high) = (row_of(at.saturating_sub(1)), row_of(at), row_of((at + 1).min(extent - 1)));
            for (((value, here), low), high) in row.iter_mut().zip(here).zip(low).zip(high) {
                *value += strength * (2.0 * here - low - high);
            }
        }
    }
}

/// Replaces each voxel of a channel with the median of the cube around it.
///
/// nnU-Net v2's `nnUNetTrainerDA5`: with probability 0.2 either this or a blur, chosen with equal probability; then
/// each channel with probability 0.5. The cube has 2 to 7 voxels along each axis, drawn per channel (batchgeneratorsv2
/// `MedianFilterTransform`).
#[derive(Clone, Debug)]
pub struct MedianFilter {
    /// Range of the cube extent in voxels.
    pub size: Range<usize>,
    /// Probability of filtering a channel.
    pub per_channel: f64,
}

impl MedianFilter {
    /// Changes the intensities in place.
    pub fn apply(&self, patch: &mut Patch, rng: &mut Stream) {
        let shape = shape(patch);
        for channel in channels_mut(patch) {
            let size = rng.random_range(self.size.clone());
            if chance(self.per_channel, rng) {
                filter(channel, shape, size);
            }
        }
    }
}

/// Implements `scipy.ndimage.median_filter` with its border mode `reflect`, which repeats the border voxel. Along an
/// axis of one voxel the cube has one voxel, which does not change the median.
fn filter(values: &mut [f32], shape: [usize; 3], size: usize) {
    let keys: Vec<i32> = values.iter().map(|value| ordered(value.to_bits() as i32)).collect();
    let [zs, ys, xs] = shape.map(|extent| (0..extent).map(|at| window(at, size, extent)).collect::<Vec<_>>());
    let [_, ny, nx] = shape;
    let mut cube = Vec::with_capacity(size.pow(3));
    for (z, plane) in zs.iter().zip(values.chunks_exact_mut(ny * nx)) {
        for (y, row) in ys.iter().zip(plane.chunks_exact_mut(nx)) {
            let rows: Vec<&[i32]> =
                z.iter().flat_map(|&z| y.iter().map(move |&y| (z * ny + y) * nx)).map(|at| &keys[at..][..nx]).collect();
            for (x, value) in xs.iter().zip(row) {
                cube.clear();
                for row in &rows {
                    cube.extend(x.iter().map(|&x| row[x]));
                }
                let middle = cube.len() / 2;
                let (_, median, _) = cube.select_nth_unstable(middle);
                *value = f32::from_bits(ordered(*median) as u32);
            }
        }
    }
}

/// Returns the positions of the window around `at`, reflected into the extent.
fn window(at: usize, size: usize, extent: usize) -> Vec<usize> {
    if extent == 1 {
        return vec![0];
    }
    let mirrored = |shifted: usize| {
        let period = 2 * extent as isize;
        let position = (at as isize + shifted as isize - (size / 2) as isize).rem_euclid(period) as usize;
        position.min(2 * extent - 1 - position)
    };
    (0..size).map(mirrored).collect()
}

/// Maps float bits to integers of the same order, and back (as in `f32::total_cmp`).
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_normalized_and_have_the_reference_length() {
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
    fn blur_matches_scipy() {
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

    #[test]
    fn a_peak_is_raised_and_its_neighbours_are_lowered() {
        let mut values = vec![0.0; 27];
        values[13] = 1.0;
        sharpen(&mut values, [3, 3, 3], 0.5);
        assert_eq!(values[13], 4.0);
        for neighbour in [4, 10, 12, 14, 16, 22] {
            assert_eq!(values[neighbour], -0.5);
        }
        assert_eq!(values.iter().filter(|value| **value != 0.0).count(), 7);
    }

    #[test]
    fn borders_repeat_and_a_slice_stays_in_its_plane() {
        // For 1 2 4 8: 4 (2 - 1 - 4) and so on, with the end voxels repeated.
        let mut values = vec![1.0, 2.0, 4.0, 8.0];
        sharpen(&mut values, [1, 1, 4], 1.0);
        assert_eq!(values, [0.0, 1.0, 2.0, 12.0]);
    }

    #[test]
    fn medians_match_scipy() {
        // `scipy.ndimage.median_filter` of `(i * 37 % 23) - 7` in a volume of 2 x 3 x 4.
        let volume: Vec<f32> = (0..24).map(|i| (i * 37 % 23) as f32 - 7.0).collect();
        for (size, expected) in MEDIANS {
            let mut values = volume.clone();
            filter(&mut values, [2, 3, 4], size);
            assert_eq!(values, expected, "size {size}");
        }
    }

    #[test]
    fn a_slice_is_filtered_in_its_plane() {
        let mut values = vec![5.0, -1.0, 0.0, -2.0, 7.0, 1.0, 3.0, 2.0, -4.0];
        filter(&mut values, [1, 3, 3], 3);
        assert_eq!(values[4], 1.0);
    }

    const MEDIANS: [(usize, [f32; 24]); 3] = [
        (
            2,
            [
                -7.0, 7.0, 7.0, 12.0, 3.0, 3.0, 7.0, 8.0, 13.0, 4.0, 4.0, 8.0, 0.0, 7.0, 7.0, 5.0, 3.0, 3.0, 7.0, 6.0,
                10.0, 4.0, 4.0, 6.0,
            ],
        ),
        (
            3,
            [
                0.0, 3.0, 6.0, 5.0, 3.0, 3.0, 4.0, 5.0, 4.0, 4.0, 4.0, 2.0, 1.0, 5.0, 5.0, 5.0, 3.0, 4.0, 5.0, 2.0,
                4.0, 3.0, 2.0, 2.0,
            ],
        ),
        (
            5,
            [
                3.0, 3.0, 4.0, 5.0, 4.0, 2.0, 2.0, 4.0, 4.0, 3.0, 3.0, 4.0, 3.0, 3.0, 3.0, 5.0, 4.0, 3.0, 4.0, 4.0,
                3.0, 3.0, 4.0, 4.0,
            ],
        ),
    ];
}
