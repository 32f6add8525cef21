//! NRRD: `.nrrd`, or `.nhdr` with its voxels in a separate file.
//!
//! Follows ITK: `space` is converted to LPS, an unknown space is treated as LPS, and non-spatial axes (`list`,
//! `vector`, `RGB-color`) become channels at any position.

mod axes;
mod fields;
mod header;
mod write;

use std::path::Path;

use ndarray::{Array4, ArrayD, Axis};

use self::header::Header;
use super::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use super::{ImageError, LabelMap, Volume};

/// Reader and writer of NRRD files.
pub struct Nrrd;

impl ImageReader for Nrrd {
    fn read_header(&self, path: &Path) -> Result<ImageHeader, ImageError> {
        let header = Header::read(path)?;
        header.raw_voxels.check()?;
        let shape = header.order().map(|axis| axis.map_or(1, |axis| header.size[axis]));
        Ok(ImageHeader { shape, scalar_type: header.raw_voxels.scalar_type, geometry: header.axes.geometry })
    }

    fn read_volume(&self, path: &Path) -> Result<Volume, ImageError> {
        let header = Header::read(path)?;
        let numbers = header.raw_voxels.read()?;
        let mut order = header.order();
        // The file lists the fastest axis first, ndarray last.
        let count = header.size.len();
        let shape: Vec<usize> = header.size.iter().rev().copied().collect();
        let mut data = ArrayD::from_shape_vec(shape, numbers).expect("length matches the header");
        for axis in order.iter_mut().filter(|axis| axis.is_none()) {
            data.insert_axis_inplace(Axis(data.ndim()));
            *axis = Some(data.ndim() - 1);
        }
        let order = order.map(|axis| axis.map_or(0, |axis| if axis < count { count - 1 - axis } else { axis }));
        let data = data.permuted_axes(order.to_vec());
        let data: Array4<f32> =
            data.into_dimensionality::<ndarray::Ix4>().expect("four axes").as_standard_layout().into_owned();
        Ok(Volume { data, geometry: header.axes.geometry })
    }
}

impl ImageWriter for Nrrd {
    fn write_labels(&self, path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
        write::labels(path, labels)
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        write::volume(path, volume)
    }
}
