//! Cutting the final patch out of the centre of the one that was read.

use super::voxels::shape;
use crate::store::{Patch, Region};

/// Copies the central part of `read` into `patch`, whose shape decides the extent.
///
/// For an odd difference the extra voxel is left out at the end, as batchgeneratorsv2's `crop_tensor` does.
pub fn centre_crop<'a>(read: impl Into<Region<'a>>, patch: &mut Patch) {
    let size = shape(patch);
    read.into().centre(size).copy_to(patch);
}
