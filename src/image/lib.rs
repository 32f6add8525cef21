//! Images: voxels with a place in the world, their files, and resampling.
//!
//! [`read_volume`], [`read_labels`] and [`write_labels`] pick the format from the file's name; everything else in the
//! crate sees only [`Volume`] and [`LabelMap`]. A file that is damaged in any way is an error that names it.

mod convert;
mod crop;
mod dicom;
mod error;
mod format;
mod meta_image;
mod nifti;
mod nrrd;
mod number;
mod raster;
mod resample;
mod seam;
mod stored;
mod text_header;
mod volume;

pub use convert::{ConvertOptions, convert};
pub use crop::{bounding_box, nonzero_mask};
pub use dicom::{holds_dicom, read_series};
pub use error::ImageError;
pub use format::{read_header, read_labels, read_volume, write_labels, write_volume};
pub use number::Number;
pub use resample::{Resampling, compute_new_shape, resample_data, resample_labels};
pub use resample::{linear, nearest, positions};
pub use seam::{ImageHeader, ImageReader, ImageWriter};
pub use volume::{Geometry, LabelMap, Plane, Volume};
