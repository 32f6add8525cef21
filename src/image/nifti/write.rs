//! Writes single-file NIfTI, compressed if the name ends in `.gz`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::{Compression, write::GzEncoder};

use super::NiftiForms;
use crate::scalar_type::EncodedVoxels;
use crate::{Geometry, ImageError, LabelMap, ScalarType, Volume};
use nnunet_core::fsio;

/// Header and the four bytes that state that there is no extension.
const VOX_OFFSET: usize = 352;
/// The same for NIfTI-2.
const VOX_OFFSET_2: usize = 544;

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
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if !name.ends_with(".nii") && !name.ends_with(".nii.gz") {
        return Err(ImageError::new(path, "cannot be written: the name of a NIfTI file must end in .nii or .nii.gz"));
    }
    let header = header(shape, voxels.scalar_type(), geometry);
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

/// Header and empty extension: NIfTI-1, or NIfTI-2 if an extent requires it.
///
/// The forms are those of the image's own file if the geometry was read from one, else sform and qform.
fn header(shape: [usize; 4], scalar_type: ScalarType, geometry: &Geometry) -> Vec<u8> {
    let [c, z, y, x] = shape;
    let is_one_plane = z == 1 && c == 1;
    let own = geometry.nifti.as_deref().filter(|forms| forms.states(geometry, [x, y, z]));
    let forms = match own {
        Some(forms) if is_one_plane || !forms.is_plane => forms.clone(),
        _ => NiftiForms::from_geometry(geometry, is_one_plane && geometry.plane().is_some()),
    };
    let axes: &[usize] = match (forms.is_plane, c) {
        (true, _) => &[x, y],
        (false, 1) => &[x, y, z],
        (false, _) => &[x, y, z, c],
    };
    let mut dim = [1; 8];
    dim[0] = axes.len();
    dim[1..=axes.len()].copy_from_slice(axes);
    let is_large = dim.iter().any(|extent| i16::try_from(*extent).is_err());
    if is_large { nifti2(dim, scalar_type, &forms) } else { nifti1(dim, scalar_type, &forms) }
}

/// Byte offsets from nifti1.h.
fn nifti1(dim: [usize; 8], scalar_type: ScalarType, forms: &NiftiForms) -> Vec<u8> {
    let mut header = Bytes(vec![0; VOX_OFFSET]);
    header.put(0, &348i32.to_le_bytes());
    header.all(40, dim.map(|extent| (extent as i16).to_le_bytes()));
    header.put(70, &datatype(scalar_type).to_le_bytes());
    header.put(72, &(8 * scalar_type.size() as i16).to_le_bytes());
    header.all(76, pixdim(forms).map(|size| (size as f32).to_le_bytes()));
    header.put(108, &(VOX_OFFSET as f32).to_le_bytes());
    header.put(112, &1f32.to_le_bytes());
    header.put(123, &[forms.units]);
    header.put(252, &forms.qform_code.to_le_bytes());
    header.put(254, &forms.sform_code.to_le_bytes());
    header.all(256, forms.quaternion.map(|value| (value as f32).to_le_bytes()));
    header.all(268, forms.offset.map(|value| (value as f32).to_le_bytes()));
    header.all(280, forms.sform.as_flattened().iter().map(|value| (*value as f32).to_le_bytes()));
    header.put(344, b"n+1\0");
    header.0
}

/// Byte offsets from nifti2.h.
fn nifti2(dim: [usize; 8], scalar_type: ScalarType, forms: &NiftiForms) -> Vec<u8> {
    let mut header = Bytes(vec![0; VOX_OFFSET_2]);
    header.put(0, &540i32.to_le_bytes());
    header.put(4, b"n+2\0\r\n\x1a\n");
    header.put(12, &datatype(scalar_type).to_le_bytes());
    header.put(14, &(8 * scalar_type.size() as i16).to_le_bytes());
    header.all(16, dim.map(|extent| (extent as i64).to_le_bytes()));
    header.all(104, pixdim(forms).map(f64::to_le_bytes));
    header.put(168, &(VOX_OFFSET_2 as i64).to_le_bytes());
    header.put(176, &1f64.to_le_bytes());
    header.put(344, &i32::from(forms.qform_code).to_le_bytes());
    header.put(348, &i32::from(forms.sform_code).to_le_bytes());
    header.all(352, forms.quaternion.map(f64::to_le_bytes));
    header.all(376, forms.offset.map(f64::to_le_bytes));
    header.all(400, forms.sform.as_flattened().iter().map(|value| value.to_le_bytes()));
    header.put(500, &i32::from(forms.units).to_le_bytes());
    header.0
}

fn pixdim(forms: &NiftiForms) -> [f64; 8] {
    let [qfac, x, y, z] = forms.pixdim;
    [qfac, x, y, z, 1.0, 1.0, 1.0, 1.0]
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Puts values one after the other.
    fn all<const N: usize>(&mut self, at: usize, values: impl IntoIterator<Item = [u8; N]>) {
        for (index, bytes) in values.into_iter().enumerate() {
            self.put(at + N * index, &bytes);
        }
    }
}
