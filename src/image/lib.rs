//! Image types, image file formats and resampling.
//!
//! [`read_volume`], [`read_labels`] and [`write_labels`] select the format by file name; the rest of the crate only
//! sees [`Volume`] and [`LabelMap`]. A damaged file results in an error that names the file.

pub mod components;
mod crop;
mod dicom;
mod format;
mod gzip;
mod inexact;
mod meta_image;
mod nifti;
mod nrrd;
mod raster;
mod raw_voxels;
mod reader_writer;
mod resample;
mod scalar_type;
mod text_header;
mod volume;

pub use crop::{bounding_box, nonzero_mask};
pub use dicom::{holds_dicom, read_series};
pub use format::{
    ConvertOptions, check_writable, convert, image_ending, read_header, read_labels, read_volume, write_labels,
    write_volume,
};
pub use gzip::GzipWriter;
pub use nifti::NiftiForms;
pub use reader_writer::{ImageError, ImageHeader, ImageReader, ImageWriter};
pub use resample::{Resampling, compute_new_shape, linear, nearest, positions, resample_data, resample_labels};
pub use scalar_type::ScalarType;
pub use volume::{Geometry, LabelMap, Plane, Volume};
