//! Writes single-file NIfTI-1, compressed if the name ends in `.gz`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::{Compression, write::GzEncoder};

use super::affine;
use crate::scalar_type::EncodedVoxels;
use crate::{Geometry, ImageError, LabelMap, ScalarType, Volume};
use nnunet_core::fsio;

/// Header and the four bytes that state that there is no extension.
const VOX_OFFSET: usize = 352;

/// Writes labels as `uint8` if all fit, else as `int16`.
pub fn labels(path: &Path, labels: &LabelMap) -> Result<(), ImageError> {
    let (z, y, x) = labels.data.dim();
    let values = labels.data.as_standard_layout();
    write(
        path,
        [1, z, y, x],
        &labels.geometry,
        &EncodedVoxels::from_labels(values.as_slice().expect("standard layout")),
    )
}

/// Writes the smallest of 8-bit integers, 16-bit integers and 32-bit floats that holds all values exactly; channels
/// become the fourth axis.
pub fn volume(path: &Path, volume: &Volume) -> Result<(), ImageError> {
    let (c, z, y, x) = volume.data.dim();
    let values = volume.data.as_standard_layout();
    let values = EncodedVoxels::from_intensities(values.as_slice().expect("standard layout"));
    write(path, [c, z, y, x], &volume.geometry, &values)
}

fn write(path: &Path, shape: [usize; 4], geometry: &Geometry, voxels: &EncodedVoxels) -> Result<(), ImageError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.ends_with(".nii") && !name.ends_with(".nii.gz") {
        return Err(ImageError::new(path, "cannot be written: the name of a NIfTI file must end in .nii or .nii.gz"));
    }
    let header = header(shape, voxels.scalar_type(), geometry).map_err(|defect| ImageError::new(path, defect))?;
    let result = fsio::write_atomically(path, |file| {
        if name.ends_with(".gz") {
            let mut encoder = BufWriter::with_capacity(1 << 18, GzEncoder::new(file, Compression::fast()));
            encoder.write_all(&header)?;
            voxels.write(&mut encoder)?;
            encoder.into_inner().map_err(io::IntoInnerError::into_error)?.finish().map(|_| ())
        } else {
            file.write_all(&header)?;
            voxels.write(file)
        }
    });
    result.map_err(|error| ImageError::new(path, format!("cannot be written: {error}")))
}

/// NIFTI_TYPE_* code of nifti1.h.
fn datatype(scalar_type: ScalarType) -> i16 {
    match scalar_type {
        ScalarType::U8 => 2,
        ScalarType::I16 => 4,
        ScalarType::U16 => 512,
        _ => 16,
    }
}

/// Header and empty extension. The sform always holds the geometry; the qform holds it if the directions are
/// orthonormal.
fn header([c, z, y, x]: [usize; 4], scalar_type: ScalarType, geometry: &Geometry) -> Result<Vec<u8>, String> {
    let mut header = Bytes(vec![0; VOX_OFFSET]);
    let axes: &[usize] = if c == 1 { &[x, y, z] } else { &[x, y, z, c] };
    header.i16(40, axes.len() as i16);
    for axis in 0..7 {
        let extent = axes.get(axis).copied().unwrap_or(1);
        let extent = i16::try_from(extent).map_err(|_| format!("cannot be written: extent {extent} is over 32767"))?;
        header.i16(42 + 2 * axis, extent);
    }
    header.i32(0, 348);
    header.i16(70, datatype(scalar_type));
    header.i16(72, 8 * scalar_type.size() as i16);
    for axis in 0..3 {
        header.f32(80 + 4 * axis, geometry.spacing[2 - axis]);
    }
    for axis in 3..7 {
        header.f32(80 + 4 * axis, 1.0);
    }
    header.f32(108, VOX_OFFSET as f64);
    header.f32(112, 1.0);
    header.0[123] = 2; // NIFTI_UNITS_MM
    header.place(geometry);
    header.0[344..348].copy_from_slice(b"n+1\0");
    Ok(header.0)
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn place(&mut self, geometry: &Geometry) {
        let rows = affine::from_geometry(geometry);
        self.i16(254, 1); // NIFTI_XFORM_SCANNER_ANAT
        for (row, entries) in rows.iter().enumerate() {
            for (column, entry) in entries.iter().enumerate() {
                self.f32(280 + 16 * row + 4 * column, *entry);
            }
        }
        let mut direction = geometry.direction;
        for (row, entries) in direction.iter_mut().enumerate() {
            entries.iter_mut().for_each(|entry| *entry *= affine::to_lps(row));
        }
        self.f32(76, 1.0);
        if affine::is_orthonormal(direction) {
            let (quaternion, qfac) = affine::to_quaternion(direction);
            self.i16(252, 1);
            self.f32(76, qfac);
            for axis in 0..3 {
                self.f32(256 + 4 * axis, quaternion[axis]);
                self.f32(268 + 4 * axis, rows[axis][3]);
            }
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn i16(&mut self, at: usize, value: i16) {
        self.put(at, &value.to_le_bytes());
    }

    fn i32(&mut self, at: usize, value: i32) {
        self.put(at, &value.to_le_bytes());
    }

    fn f32(&mut self, at: usize, value: f64) {
        self.put(at, &(value as f32).to_le_bytes());
    }
}
