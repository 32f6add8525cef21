//! DICOM series with one file per slice, read as one image.
//!
//! Slices are sorted along their normal and must be equidistant. Intensities are the stored values after rescale slope
//! and intercept, as in pydicom: `MONOCHROME1` only affects display and does not invert the values (ITK inverts them).
//! Compressed and multi-frame files are not supported; the error names the command that converts them.

mod lengths;
mod series;
mod slice;

use std::path::Path;

use self::series::{Series, files};
pub use self::slice::is_dicom;
use super::reader_writer::{ImageHeader, ImageReader};
use super::{ImageError, Volume};

/// Reader for a folder with the files of one series, or for a single file with one slice.
pub struct DicomSeries;

impl ImageReader for DicomSeries {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        Series::find(path, None)?.header()
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        Series::find(path, None)?.read()
    }
}

/// Reads one series from a folder of DICOM files by its SeriesInstanceUID. `uid` is optional if the folder holds a
/// single series.
///
/// # Errors
/// Returns an error if the series does not exist, if `uid` is `None` and the folder holds several series (the error
/// lists them), if a file is damaged or unsupported, or if the slices are not an equidistant stack.
pub fn read_series(folder: &Path, uid: Option<&str>) -> Result<Volume, ImageError> {
    Series::find(folder, uid)?.read()
}

/// Whether a folder contains DICOM files, detected by their magic number.
pub fn holds_dicom(folder: &Path) -> bool {
    folder.is_dir() && files(folder).is_ok_and(|files| files.iter().any(|path| is_dicom(path)))
}
