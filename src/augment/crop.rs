//! Cutting the final patch out of the centre of the one that was read.

use ndarray::s;

use crate::store::Patch;

/// Copies the central part of `read` into `patch`, whose shape decides the extent.
///
/// For an odd difference the extra voxel is left out at the end, as batchgeneratorsv2's `crop_tensor` does.
///
/// # Panics
/// If `patch` is larger than `read` along any axis or has another number of channels.
pub fn centre_crop(read: &Patch, patch: &mut Patch) {
    let [z, y, x] = std::array::from_fn(|axis| {
        let (outer, inner) = (read.labels.shape()[axis], patch.labels.shape()[axis]);
        let lo = outer / 2 - inner / 2;
        lo..lo + inner
    });
    patch.data.assign(&read.data.slice(s![.., z.clone(), y.clone(), x.clone()]));
    patch.labels.assign(&read.labels.slice(s![z, y, x]));
}
