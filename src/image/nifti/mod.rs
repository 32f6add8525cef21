//! NIfTI-1, NIfTI-2 and ANALYZE 7.5, compressed or not, in one file or in two.
//!
//! Where readers differ, this one does as nibabel: the sform goes before the qform, a scl_slope of 0 or NaN means no
//! scaling, axes beyond the third are channels. Unlike most it takes nothing on trust: a short file, an impossible
//! header or a failed checksum is an error, before any memory is asked for.

mod affine;
mod header;
mod read;
mod write;

use std::path::Path;

use super::seam::{ImageHeader, ImageReader, ImageWriter};
use super::{ImageError, LabelMap, Volume};

/// The format.
pub struct Nifti;

impl ImageReader for Nifti {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        read::header(path)
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        read::volume(path)
    }
}

impl ImageWriter for Nifti {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        write::labels(path, labels)
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        write::volume(path, volume)
    }
}
