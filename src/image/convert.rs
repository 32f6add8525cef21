//! Conversion of images between file formats.

use std::path::Path;

use super::{ImageError, read_labels, read_series, read_volume, write_labels, write_volume};

/// Options of [`convert`].
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// Read the image as a label map (integer class indices), not as intensities.
    pub labels: bool,
    /// SeriesInstanceUID of the DICOM series to read; required if the input folder holds several series.
    pub series: Option<String>,
    /// Overwrite an existing output file.
    pub overwrite: bool,
}

/// Reads `input`, an image or a folder of DICOM files, and writes it to `output` in the format of its name.
///
/// # Errors
/// Returns an error if the input cannot be read, the output format cannot hold it, or the output exists and `overwrite`
/// is not set.
pub fn convert(input: &Path, output: &Path, options: &ConvertOptions) -> Result<(), ImageError> {
    if output.exists() && !options.overwrite {
        return Err(ImageError::new(output, "already exists; pass --overwrite to replace it"));
    }
    if options.labels {
        return write_labels(output, &read_labels(input)?);
    }
    let volume = match &options.series {
        Some(series) => read_series(input, Some(series))?,
        None => read_volume(input)?,
    };
    write_volume(output, &volume)
}
