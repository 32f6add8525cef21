//! Access to the memory of a patch, and intensity statistics.

use multiversion::multiversion;
use ndarray::{Array3, Array4};

use crate::store::Patch;

/// Number of parallel partial sums, so that an addition does not wait for the previous one.
const LANES: usize = 16;

/// Creates a patch of zeros with `channels` channels and spatial extent `(z, y, x)`.
pub fn blank_patch(channels: usize, [z, y, x]: [usize; 3]) -> Patch {
    Patch { data: Array4::zeros((channels, z, y, x)), labels: Array3::zeros((z, y, x)), previous: None }
}

/// Returns the spatial extent, `(z, y, x)`.
pub(super) fn shape(patch: &Patch) -> [usize; 3] {
    patch.labels.dim().into()
}

/// Returns the channels, each as a slice of voxels in C order.
pub(super) fn channels_mut(patch: &mut Patch) -> impl Iterator<Item = &mut [f32]> {
    let voxels = patch.labels.len();
    data_mut(patch).chunks_exact_mut(voxels)
}

/// Returns all intensities, channel by channel.
pub(super) fn data_mut(patch: &mut Patch) -> &mut [f32] {
    patch.data.as_slice_mut().expect("patches are allocated in C order and never permuted")
}

/// Returns the labels and, in a cascade, those of the previous stage.
pub(super) fn label_maps_mut(patch: &mut Patch) -> impl Iterator<Item = &mut [i16]> {
    let maps = [Some(&mut patch.labels), patch.previous.as_mut()].into_iter().flatten();
    maps.map(|labels| labels.as_slice_mut().expect("patches are allocated in C order and never permuted"))
}

/// Mean, standard deviation and range of a set of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Statistics {
    pub(super) mean: f32,
    pub(super) std: f32,
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Statistics {
    /// Computes the statistics in one pass, with sums in f64.
    pub(super) fn compute(values: &[f32]) -> Self {
        statistics(values)
    }

    /// Returns the statistics of the negated values.
    pub(super) fn negated(self) -> Self {
        Self { mean: -self.mean, low: -self.high, high: -self.low, ..self }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn statistics(values: &[f32]) -> Statistics {
    // Values are summed relative to the first one, to avoid cancellation in the difference of squares.
    let origin = values.first().copied().unwrap_or(0.0);
    let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let (mut lows, mut highs) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let blocks = values.chunks_exact(LANES);
    // Padding with the origin adds 0 to every sum.
    let mut rest = [origin; LANES];
    rest[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
    for block in blocks {
        for lane in 0..LANES {
            add(block[lane], origin, &mut sums[lane], &mut squares[lane], &mut lows[lane], &mut highs[lane]);
        }
    }
    for lane in 0..LANES {
        add(rest[lane], origin, &mut sums[lane], &mut squares[lane], &mut lows[lane], &mut highs[lane]);
    }
    let mean = sums.iter().sum::<f64>() / values.len() as f64;
    let variance = squares.iter().sum::<f64>() / values.len() as f64 - mean * mean;
    Statistics {
        mean: (f64::from(origin) + mean) as f32,
        std: variance.max(0.0).sqrt() as f32,
        low: lows.into_iter().fold(f32::INFINITY, f32::min),
        high: highs.into_iter().fold(f32::NEG_INFINITY, f32::max),
    }
}

/// Adds the distance of a value from the origin to the sums, and updates the range.
#[inline(always)]
fn add(value: f32, origin: f32, sum: &mut f64, squares: &mut f64, low: &mut f32, high: &mut f32) {
    let distance = f64::from(value - origin);
    *sum += distance;
    *squares += distance * distance;
    *low = if value < *low { value } else { *low };
    *high = if value > *high { value } else { *high };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_match_two_passes_in_double_precision() {
        for count in [1, 15, 16, 1003] {
            let values: Vec<f32> = (0..count).map(|index| 1000.0 + (index as f32 * 0.7).sin()).collect();
            let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count as f64;
            let squares: f64 = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
            let statistics = Statistics::compute(&values);
            assert!((f64::from(statistics.mean) - mean).abs() < 1e-4, "{statistics:?}");
            assert!((f64::from(statistics.std) - (squares / count as f64).sqrt()).abs() < 1e-6, "{statistics:?}");
            assert_eq!(statistics.low, values.iter().copied().fold(f32::MAX, f32::min));
            assert_eq!(statistics.high, values.iter().copied().fold(f32::MIN, f32::max));
        }
    }
}
