//! Reader and writer traits that a file format implements, and their error type.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Geometry, LabelMap, ScalarType, Volume};

/// An image file that cannot be read or written, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {defect}")]
pub struct ImageError {
    /// Path of the file.
    pub path: PathBuf,
    /// Description of the problem.
    pub defect: String,
}

impl ImageError {
    /// Error for the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), defect: defect.to_string() }
    }
}

/// Logs a warning about a file, once per file and process: a command may read a file several times.
pub(super) fn warn_once(path: &Path, remark: &str) {
    static WARNED: Mutex<BTreeSet<(PathBuf, String)>> = Mutex::new(BTreeSet::new());
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    if warned.insert((path.to_owned(), remark.to_owned())) {
        tracing::warn!("{}: {remark}", path.display());
    }
}

/// Shape and geometry of an image, without its voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageHeader {
    /// `(channel, z, y, x)`.
    pub shape: [usize; 4],
    /// Scalar type of the voxels in the file.
    pub scalar_type: ScalarType,
    /// Physical position of the voxels.
    pub geometry: Geometry,
}

/// Reads one file format.
pub trait ImageReader: Sync {
    /// Reads shape and geometry only.
    ///
    /// # Errors
    /// Returns an error if the file is missing, damaged, or shorter than its header declares.
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError>;

    /// Reads intensities, `(channel, z, y, x)`.
    ///
    /// # Errors
    /// Returns an error in the cases of [`ImageReader::read_header`], and if the voxels are damaged.
    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError>;

    /// Reads the stored values, without conversions that only apply to intensities.
    ///
    /// # Errors
    /// Returns an error in the cases of [`ImageReader::read_volume`].
    fn read_label_values(&self, path: &Path) -> Result<Volume, ImageError> {
        self.read_volume(path)
    }
}

/// Writes one file format. Writes are atomic: the file is complete or absent.
pub trait ImageWriter: Sync {
    /// Writes a label map in the smallest integer type that holds it.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written, or the format cannot hold the labels.
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError>;

    /// Writes intensities, as 8-bit or 16-bit integers if these hold all values.
    ///
    /// # Errors
    /// Returns an error in the cases of [`ImageWriter::write_labels`].
    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError>;
}
