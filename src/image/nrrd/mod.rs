//! NRRD: `.nrrd`, or `.nhdr` with its voxels in a separate file.
//!
//! Follows ITK: `space` is converted to LPS, an unknown space is treated as LPS, and non-spatial axes (`list`,
//! `vector`, `RGB-color`) become channels at any position.

mod header;

use std::io::{self, Write};
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use ndarray::{Array4, ArrayD, Axis};

use super::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use super::scalar_type::EncodedVoxels;
use super::{Geometry, ImageError, LabelMap, ScalarType, Volume};
use header::Header;
use nnunet_core::fsio;

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
        write_labels(path, labels)
    }

    fn write_volume(&self, path: &Path, volume: &Volume) -> Result<(), ImageError> {
        write_volume(path, volume)
    }
}

fn write_labels(path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
    let (z, y, x) = labels.data.dim();
    let values = labels.data.as_standard_layout();
    write_file(
        path,
        [1, z, y, x],
        &labels.geometry,
        &EncodedVoxels::from_labels(values.as_slice().expect("standard layout")),
    )
}

/// Writes a volume; channels become the slowest axis, of kind `list`.
fn write_volume(path: &Path, volume: &Volume) -> Result<(), ImageError> {
    let (c, z, y, x) = volume.data.dim();
    let values = volume.data.as_standard_layout();
    let values = EncodedVoxels::from_intensities(values.as_slice().expect("standard layout"));
    write_file(path, [c, z, y, x], &volume.geometry, &values)
}

fn write_file(path: &Path, shape: [usize; 4], geometry: &Geometry, voxels: &EncodedVoxels) -> Result<(), ImageError> {
    let fail = |path: &Path, error: io::Error| ImageError::new(path, format!("cannot be written: {error}"));
    let pack = |file: &mut dyn Write| {
        let mut encoder = GzEncoder::new(file, Compression::fast());
        voxels.write(&mut encoder)?;
        encoder.finish().map(drop)
    };
    let header = header(shape, voxels.scalar_type(), geometry);
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("nhdr")) {
        let data = path.with_extension("raw.gz");
        // Written after the voxels, so that a header never exists without its data file.
        fsio::write_atomically(&data, |file| pack(file)).map_err(|error| fail(&data, error))?;
        let name = data.file_name().unwrap_or_default().to_string_lossy();
        let header = format!("{header}data file: {name}\n");
        return fsio::write_bytes(path, header.as_bytes()).map_err(|error| fail(path, error));
    }
    let written = fsio::write_atomically(path, |file| {
        file.write_all(format!("{header}\n").as_bytes())?;
        pack(file)
    });
    written.map_err(|error| fail(path, error))
}

/// Header fields without the empty line that ends the header.
fn header([c, z, y, x]: [usize; 4], scalar_type: ScalarType, geometry: &Geometry) -> String {
    let Geometry { spacing, origin, direction, .. } = geometry;
    let (space, mut sizes, mut directions, origin) = match geometry.plane().filter(|_| z == 1) {
        Some(plane) => {
            let axis = |axis: usize| vector(&[0, 1].map(|row: usize| plane.direction[row][axis] * plane.spacing[axis]));
            ("space dimension: 2", vec![x, y], vec![axis(0), axis(1)], vector(&plane.origin))
        }
        None => {
            let axis = |axis: usize| vector(&[0, 1, 2].map(|row: usize| direction[row][axis] * spacing[2 - axis]));
            ("space: left-posterior-superior", vec![x, y, z], vec![axis(0), axis(1), axis(2)], vector(origin))
        }
    };
    let mut kinds = vec!["domain"; sizes.len()];
    if c > 1 {
        sizes.push(c);
        directions.push("none".to_owned());
        kinds.push("list");
    }
    let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
    format!(
        "NRRD0004\ntype: {}\ndimension: {}\n{space}\nsizes: {}\nspace directions: {}\nkinds: {}\nendian: little\n\
         encoding: gzip\nspace origin: {origin}\n",
        scalar_type_name(scalar_type),
        sizes.len(),
        sizes.join(" "),
        directions.join(" "),
        kinds.join(" ")
    )
}

fn vector(values: &[f64]) -> String {
    format!("({})", values.iter().map(f64::to_string).collect::<Vec<_>>().join(","))
}

fn scalar_type_name(scalar_type: ScalarType) -> &'static str {
    match scalar_type {
        ScalarType::U8 => "uint8",
        ScalarType::I16 => "int16",
        ScalarType::U16 => "uint16",
        _ => "float",
    }
}
