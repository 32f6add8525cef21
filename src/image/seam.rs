//! What a file format has to do: the seam behind which a new one is added.

use std::path::Path;

use super::{Geometry, ImageError, LabelMap, Number, Volume};

/// Extent and place of an image, without its voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageHeader {
    /// `(channel, z, y, x)`.
    pub shape: [usize; 4],
    /// How the file stores a number.
    pub number: Number,
    /// Where the voxels lie.
    pub geometry: Geometry,
}

/// Reads one file format.
pub trait ImageReader: Sync {
    /// Reads extent and geometry only.
    ///
    /// # Errors
    /// The file is missing, damaged, or shorter than its header claims.
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError>;

    /// Reads intensities.
    ///
    /// # Errors
    /// As [`ImageReader::read_header`], or the voxels are damaged.
    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError>;

    /// Reads the numbers that stand in the file, before any conversion that only makes sense for intensities.
    ///
    /// # Errors
    /// As [`ImageReader::read_volume`].
    fn read_label_values(&self, path: &Path) -> Result<Volume, ImageError> {
        self.read_volume(path)
    }
}

/// Writes one file format; a file is there wholly or not at all.
pub trait ImageWriter: Sync {
    /// Writes a label map in the smallest integer type that holds it.
    ///
    /// # Errors
    /// The file cannot be written, or the format cannot hold the labels.
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError>;

    /// Writes intensities, in 8-bit or 16-bit integers where these hold all values.
    ///
    /// # Errors
    /// As [`ImageWriter::write_labels`].
    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError>;
}
