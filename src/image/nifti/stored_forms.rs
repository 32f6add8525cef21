//! The forms of a NIfTI header that place its voxels, as they are stored.

use serde::{Deserialize, Serialize};

/// Fields of a NIfTI header that place its voxels, in the units of the file.
///
/// A header has up to three forms: sform, qform and pixdim. nibabel prefers the sform, ITK the qform, so a label map has
/// to repeat those of its image to be on it for both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NiftiForms {
    /// Whether the file has two axes.
    pub(super) is_plane: bool,
    /// Spatial part of `xyzt_units`.
    pub(super) units: u8,
    /// `pixdim[0..4]`: qfac, and the voxel size along x, y and z.
    pub(super) pixdim: [f64; 4],
    pub(super) qform_code: i16,
    pub(super) sform_code: i16,
    /// `quatern_b`, `quatern_c`, `quatern_d`.
    pub(super) quaternion: [f64; 3],
    /// `qoffset_x`, `qoffset_y`, `qoffset_z`.
    pub(super) offset: [f64; 3],
    /// `srow_x`, `srow_y`, `srow_z`.
    pub(super) sform: [[f64; 4]; 3],
}
