//! A series of DICOM files, one slice each, as one image.
//!
//! Slices are sorted along their normal and must lie at equal distances. Intensities are the stored numbers after rescale
//! slope and intercept, as pydicom has them: `MONOCHROME1` asks for another display, not for other numbers. ITK turns the
//! numbers round there.
//! What cannot be read, compressed and multi-frame files, is refused with the command that converts it.

mod lengths;
mod series;
mod slice;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use self::series::Series;
use super::seam::{ImageHeader, ImageReader};
use super::{ImageError, Volume};

/// The format: a folder with the files of one series, or a single file of one slice.
pub struct DicomSeries;

impl ImageReader for DicomSeries {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        Series::find(path, None)?.header()
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        Series::find(path, None)?.read()
    }
}

/// Reads a series out of a folder of DICOM files by its SeriesInstanceUID, which only need be given where there are
/// several.
///
/// # Errors
/// There is no such series, or several to choose from, all of which the error lists; or its files are damaged, of a kind
/// that cannot be read, or no stack of slices at equal distances.
pub fn read_series(folder: &Path, uid: Option<&str>) -> Result<Volume, ImageError> {
    Series::find(folder, uid)?.read()
}

/// Whether a folder holds DICOM files, by their magic number.
pub fn holds_dicom(folder: &Path) -> bool {
    folder.is_dir() && files(folder).is_ok_and(|files| files.iter().any(|path| is_dicom(path)))
}

/// Whether this is a DICOM file: `DICM` stands after a preamble of 128 bytes.
pub fn is_dicom(path: &Path) -> bool {
    let begin = || -> std::io::Result<[u8; 132]> {
        let mut bytes = [0; 132];
        File::open(path)?.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    path.is_file() && begin().is_ok_and(|bytes| bytes.ends_with(b"DICM"))
}

/// The files of a folder that are not hidden, by name; or the file itself.
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
