//! NIfTI-1, NIfTI-2 and ANALYZE 7.5, compressed or not, in one file or as a header/image pair.
//!
//! Follows nibabel: the sform takes precedence over the qform, a scl_slope of 0 or NaN means no scaling, and axes
//! beyond the third become channels. A truncated file, an invalid header or a checksum mismatch is an error, and sizes
//! are checked before any allocation.

mod affine;
mod header;
mod read;
mod write;

use std::path::Path;

use super::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use super::{ImageError, LabelMap, Volume};

/// Reader and writer of NIfTI files.
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
