//! DICOM series with one file per slice, read as one image.
//!
//! Slices are sorted along their normal and must be equidistant. Intensities are the stored values after rescale slope
//! and intercept, as in pydicom: `MONOCHROME1` only affects display and does not invert the values (ITK inverts them).
//! Compressed and multi-frame files are not supported; the error names the command that converts them.

mod lengths;
mod series;
mod slice;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use self::series::Series;
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

/// Whether this is a DICOM file: `DICM` after a preamble of 128 bytes.
pub fn is_dicom(path: &Path) -> bool {
    let begin = || -> std::io::Result<[u8; 132]> {
        let mut bytes = [0; 132];
        File::open(path)?.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    path.is_file() && begin().is_ok_and(|bytes| bytes.ends_with(b"DICM"))
}

/// The non-hidden files of a folder, sorted by name; or the file itself.
fn files(path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let fail = |error: std::io::Error| ImageError::new(path, error);
    let entries = std::fs::read_dir(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let mut files: Vec<_> = entries
        .into_iter()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}
