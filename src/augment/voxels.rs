//! Access to a patch's memory, and statistics of it.

use ndarray::{Array3, Array4};

use crate::store::Patch;

/// A patch of zeros with `channels` channels and spatial extent `shape`, `(z, y, x)`.
pub(crate) fn blank_patch(channels: usize, [z, y, x]: [usize; 3]) -> Patch {
    Patch { data: Array4::zeros((channels, z, y, x)), labels: Array3::zeros((z, y, x)) }
}

/// Spatial extent, `(z, y, x)`.
pub(super) fn shape(patch: &Patch) -> [usize; 3] {
    patch.labels.dim().into()
}

/// The channels, each as its voxels in C order.
pub(super) fn channels_mut(patch: &mut Patch) -> impl Iterator<Item = &mut [f32]> {
    let voxels = patch.labels.len();
    data_mut(patch).chunks_exact_mut(voxels)
}

/// All intensities, channel by channel.
pub(super) fn data_mut(patch: &mut Patch) -> &mut [f32] {
    patch.data.as_slice_mut().expect("patches are allocated in C order and never permuted")
}

/// All labels.
pub(super) fn labels_mut(patch: &mut Patch) -> &mut [i16] {
    patch.labels.as_slice_mut().expect("patches are allocated in C order and never permuted")
}

/// Mean, accumulated in f64.
pub(super) fn mean(values: &[f32]) -> f32 {
    (values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64) as f32
}

/// Standard deviation about a known mean, accumulated in f64.
pub(super) fn standard_deviation(values: &[f32], mean: f32) -> f32 {
    let squares: f64 = values.iter().map(|&value| f64::from(value - mean).powi(2)).sum();
    (squares / values.len() as f64).sqrt() as f32
}

/// Smallest and largest value.
pub(super) fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
}
