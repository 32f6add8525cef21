//! Selection of the file format by file name, and conversion between formats.

use std::path::Path;

use ndarray::{Array3, Array4, Axis};

use super::dicom::{DicomSeries, is_dicom, read_series};
use super::meta_image::MetaImage;
use super::nifti::Nifti;
use super::nrrd::Nrrd;
use super::raster::{Bmp, Png, Tiff};
use super::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use super::{ImageError, LabelMap, Volume};

trait Format: ImageReader + ImageWriter {}
impl<T: ImageReader + ImageWriter> Format for T {}

/// File name endings and their formats.
const FORMATS: [(&str, &dyn Format); 14] = [
    (".nii", &Nifti),
    (".nii.gz", &Nifti),
    (".hdr", &Nifti),
    (".hdr.gz", &Nifti),
    (".img", &Nifti),
    (".img.gz", &Nifti),
    (".mha", &MetaImage),
    (".mhd", &MetaImage),
    (".nrrd", &Nrrd),
    (".nhdr", &Nrrd),
    (".bmp", &Bmp),
    (".png", &Png),
    (".tif", &Tiff),
    (".tiff", &Tiff),
];

fn find(path: &Path) -> Option<&'static dyn Format> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    FORMATS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, format)| *format)
}

fn reader_of(path: &Path) -> Result<&'static dyn ImageReader, ImageError> {
    match find(path) {
        _ if path.is_dir() => Ok(&DicomSeries),
        Some(format) => Ok(format),
        None if is_dicom(path) => Ok(&DicomSeries),
        None => Err(unknown(path)),
    }
}

fn writer_of(path: &Path) -> Result<&'static dyn ImageWriter, ImageError> {
    find(path).map(|format| format as &dyn ImageWriter).ok_or_else(|| unknown(path))
}

fn unknown(path: &Path) -> ImageError {
    let known: Vec<_> = FORMATS.iter().map(|(ending, _)| *ending).collect();
    ImageError::new(path, format!("unknown file type; supported are {}, and DICOM for reading", known.join(", ")))
}

/// Reads shape and geometry of an image.
///
/// # Errors
/// Returns an error if the type is unknown, or the file is missing or damaged.
pub fn read_header(path: &Path) -> Result<ImageHeader, ImageError> {
    reader_of(path)?.read_header(path)
}

/// Reads an image, or a folder with the DICOM files of one series. Axes beyond the third, components of a voxel and
/// colors of a raster image become channels.
///
/// # Errors
/// Returns an error if the type is unknown, or the file is missing or damaged.
pub fn read_volume(path: &Path) -> Result<Volume, ImageError> {
    reader_of(path)?.read_volume(path)
}

/// Reads a label map.
///
/// # Errors
/// Returns an error as [`read_volume`] does, and if the file has several channels or a value is not an integer in the
/// range of `i16`.
pub fn read_labels(path: &Path) -> Result<LabelMap, ImageError> {
    let Volume { data, geometry } = reader_of(path)?.read_label_values(path)?;
    Ok(LabelMap { data: to_labels(data).map_err(|defect| ImageError::new(path, defect))?, geometry })
}

/// Writes a label map. Raster formats keep only the pixels; a TIFF file has its spacing in a JSON file beside it.
///
/// # Errors
/// Returns an error if the type is unknown or cannot hold the labels, or the file cannot be written.
pub fn write_labels(path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
    writer_of(path)?.write_labels(path, labels)
}

/// Writes an image. Channels become a fourth axis, the components of a voxel or the colors of a raster image.
///
/// # Errors
/// Returns an error in the cases of [`write_labels`].
pub fn write_volume(path: &Path, volume: &Volume) -> Result<(), ImageError> {
    writer_of(path)?.write_volume(path, volume)
}

/// Maximum rounding error of labels stored as floating point or with a scale factor.
const TOLERANCE: f32 = 1e-3;

fn to_labels(data: Array4<f32>) -> Result<Array3<i16>, String> {
    let channels = data.len_of(Axis(0));
    if channels != 1 {
        return Err(format!("has {channels} channels; a label map has one"));
    }
    let data = data.index_axis_move(Axis(0), 0);
    let to_label = |value: f32| {
        // Fast path without rounding: nearly all values are integers in range.
        let label = value as i16;
        if f32::from(label) == value {
            return Some(label);
        }
        let nearest = value.round();
        let is_label =
            (value - nearest).abs() <= TOLERANCE && (f32::from(i16::MIN)..=f32::from(i16::MAX)).contains(&nearest);
        is_label.then_some(nearest as i16)
    };
    let labels = data.iter().map(|value| to_label(*value)).collect::<Option<Vec<_>>>();
    if let Some(labels) = labels {
        return Ok(Array3::from_shape_vec(data.raw_dim(), labels).expect("one label per voxel"));
    }
    let strange = data.indexed_iter().find(|(_, value)| to_label(**value).is_none());
    let ((z, y, x), value) = strange.expect("an invalid value exists");
    let reason = match value.fract() == 0.0 {
        true => format!("labels go from {} to {}", i16::MIN, i16::MAX),
        false => "labels are integers".to_owned(),
    };
    Err(format!("{value} at voxel (x, y, z) = ({x}, {y}, {z}) is not a label: {reason}"))
}

/// Checks that label maps can be written in a dataset's file format.
///
/// # Errors
/// Returns a message that says what to do.
pub fn check_writable(file_ending: &str) -> Result<(), String> {
    let written: Vec<&str> = FORMATS.iter().map(|(ending, _)| *ending).filter(|ending| is_written(ending)).collect();
    let written = written.join(", ");
    match image_ending(file_ending).map(str::to_lowercase) {
        Some(known) if is_written(&known) => Ok(()),
        Some(_) => {
            Err(format!("{file_ending} files are read, but label maps cannot be written to them; use one of {written}"))
        }
        None if [".dcm", ".dicom", ".ima"].contains(&file_ending.to_lowercase().as_str()) => Err(format!(
            "{file_ending} is DICOM, which holds no dataset; convert each series to an image: nnunet-dist convert \
             SERIES_FOLDER CASE_0000.nii.gz"
        )),
        None => Err(format!("{file_ending} is not a supported format; use one of {written}")),
    }
}

/// Whether label maps are written to files with this ending of [`FORMATS`]: not to header/image pairs of NIfTI.
fn is_written(ending: &str) -> bool {
    !ending.starts_with(".hdr") && !ending.starts_with(".img")
}

/// Returns the ending of a file name if it is that of an image format, in either case.
pub fn image_ending(name: &str) -> Option<&str> {
    let lower = name.to_lowercase();
    let (ending, _) = FORMATS.iter().find(|(ending, _)| lower.ends_with(ending))?;
    name.get(name.len().checked_sub(ending.len())?..)
}

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
