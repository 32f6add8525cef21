//! Center crop of the patch that was read to the final patch size.

use super::voxels::shape;
use crate::store::{Patch, Region};

/// Copies the center of `read` into `patch`; the shape of `patch` sets the extent.
///
/// If the size difference is odd, the extra voxel is dropped at the end, as in batchgeneratorsv2's `crop_tensor`.
pub fn centre_crop<'a>(read: impl Into<Region<'a>>, patch: &mut Patch) {
    let size = shape(patch);
    read.into().centre(size).copy_to(patch);
}
