//! MetaImage: `.mha`, or `.mhd` with its voxels in a separate file (`.raw`, `.zraw`).
//!
//! Follows ITK: `TransformMatrix` lists the axis directions one after the other, a negative spacing flips its axis, and
//! `ElementToIntensityFunction...` is ignored. Voxel components and a fourth axis become channels.

mod header;
mod write;

use std::path::Path;

use ndarray::Array4;

use self::header::Header;
use super::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use super::scalar_type::components_first;
use super::{ImageError, LabelMap, Volume};

/// Reader and writer of MetaImage files.
pub struct MetaImage;

impl ImageReader for MetaImage {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let Header { shape: [images, z, y, x], components, raw_voxels, geometry } = Header::read(path)?;
        raw_voxels.check()?;
        Ok(ImageHeader { shape: [images * components, z, y, x], scalar_type: raw_voxels.scalar_type, geometry })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        let Header { shape: [images, z, y, x], components, raw_voxels, geometry } = Header::read(path)?;
        let numbers = components_first(raw_voxels.read()?, components, z * y * x);
        let data = Array4::from_shape_vec((images * components, z, y, x), numbers);
        Ok(Volume { data: data.expect("length matches the header"), geometry })
    }
}

impl ImageWriter for MetaImage {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        write::labels(path, labels)
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        write::volume(path, volume)
    }
}
