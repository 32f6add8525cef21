//! From one file format to another.

use std::path::Path;

use super::{ImageError, read_labels, read_series, read_volume, write_labels, write_volume};

/// How an image is converted.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// The image is a label map: numbers of classes, not intensities.
    pub labels: bool,
    /// Which series (SeriesInstanceUID) of a folder of DICOM files; needed where there are several.
    pub series: Option<String>,
    /// Replace what is there.
    pub overwrite: bool,
}

/// Reads `input`, an image or a folder of DICOM files, and writes it to `output` in the format of its name.
///
/// # Errors
/// The input cannot be read, the output's format cannot hold it, or there is an output already.
pub fn convert(input: &Path, output: &Path, options: &ConvertOptions) -> Result<(), ImageError> {
    if output.exists() && !options.overwrite {
        return Err(ImageError::new(output, "exists already; --overwrite replaces it"));
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
