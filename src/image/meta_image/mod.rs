//! MetaImage: `.mha`, or `.mhd` with its voxels in a separate file (`.raw`, `.zraw`).
//!
//! Follows ITK: `TransformMatrix` lists the axis directions one after the other, a negative spacing flips its axis, and
//! `ElementToIntensityFunction...` is ignored. Voxel components and a fourth axis become channels.

mod header;

use std::io::{self, Write};
use std::path::Path;

use flate2::{Compression, write::ZlibEncoder};
use ndarray::Array4;

use self::header::Header;
use super::reader_writer::{ImageHeader, ImageReader, ImageWriter};
use super::scalar_type::{EncodedVoxels, components_first, components_last};
use super::{Geometry, ImageError, LabelMap, ScalarType, Volume};
use nnunet_core::fsio;

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

/// Writes a volume; channels become the components of a voxel.
fn write_volume(path: &Path, volume: &Volume) -> Result<(), ImageError> {
    let (c, z, y, x) = volume.data.dim();
    let values = components_last(&volume.data);
    let values = EncodedVoxels::from_intensities(values.as_slice().expect("standard layout"));
    write_file(path, [c, z, y, x], &volume.geometry, &values)
}

fn write_file(path: &Path, shape: [usize; 4], geometry: &Geometry, voxels: &EncodedVoxels) -> Result<(), ImageError> {
    let fail = |error: io::Error| ImageError::new(path, format!("cannot be written: {error}"));
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    let packed = voxels.write(&mut packed).and_then(|()| packed.finish()).map_err(fail)?;
    let header = |data_file: &str| header(shape, voxels.scalar_type(), geometry, packed.len(), data_file);
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mhd")) {
        let data = path.with_extension("zraw");
        // Written after the voxels, so that a header never exists without its data file.
        fsio::write_bytes(&data, &packed).map_err(|error| ImageError::new(&data, error))?;
        let name = data.file_name().unwrap_or_default().to_string_lossy();
        return fsio::write_bytes(path, header(&name).as_bytes()).map_err(fail);
    }
    let written = fsio::write_atomically(path, |file| {
        file.write_all(header("LOCAL").as_bytes())?;
        file.write_all(&packed)
    });
    written.map_err(fail)
}

fn header(
    [c, z, y, x]: [usize; 4],
    scalar_type: ScalarType,
    geometry: &Geometry,
    packed: usize,
    data_file: &str,
) -> String {
    let Geometry { spacing, origin, direction, .. } = geometry;
    let axis = |axis: usize| [0, 1, 2].map(|row: usize| direction[row][axis]);
    let (axes, matrix, origin, spacing, size) = match geometry.plane().filter(|_| z == 1) {
        Some(plane) => {
            let [[a, b], [c, d]] = plane.direction;
            (2, vec![a, c, b, d], plane.origin.to_vec(), plane.spacing.to_vec(), vec![x, y])
        }
        None => {
            let matrix = [axis(0), axis(1), axis(2)].concat();
            (3, matrix, origin.to_vec(), vec![spacing[2], spacing[1], spacing[0]], vec![x, y, z])
        }
    };
    let channels = if c == 1 { String::new() } else { format!("ElementNumberOfChannels = {c}\n") };
    format!(
        "ObjectType = Image\nNDims = {axes}\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n\
         CompressedDataSize = {packed}\nTransformMatrix = {}\nOffset = {}\nElementSpacing = {}\nDimSize = {}\n{channels}\
         ElementType = {}\nElementDataFile = {data_file}\n",
        list(&matrix),
        list(&origin),
        list(&spacing),
        list(&size),
        element_type_name(scalar_type)
    )
}

fn list<T: std::fmt::Display>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

fn element_type_name(scalar_type: ScalarType) -> &'static str {
    match scalar_type {
        ScalarType::U8 => "MET_UCHAR",
        ScalarType::I16 => "MET_SHORT",
        ScalarType::U16 => "MET_USHORT",
        _ => "MET_FLOAT",
    }
}
