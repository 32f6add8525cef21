//! Parsing and validation of NIfTI-1, NIfTI-2 and ANALYZE headers.

use super::stored_forms::NiftiForms;
use crate::{Geometry, ScalarType};

/// Number of bytes to read before parsing: the length of the longer header.
pub const MAX_LEN: usize = 540;
/// Length of the NIfTI-1 and ANALYZE headers.
const LEN_1: usize = 348;

/// A validated header.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// `(channel, z, y, x)`; voxel components are not included in the channels.
    pub shape: [usize; 4],
    pub voxel: VoxelType,
    pub big_endian: bool,
    /// Byte offset of the voxels in their file.
    pub offset: u64,
    /// Slope and intercept, if intensities are scaled.
    pub scaling: Option<(f64, f64)>,
    pub geometry: Geometry,
    /// Remark on a form that cannot be used, for a warning.
    pub remark: Option<String>,
}

/// Storage format of a voxel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoxelType {
    pub scalar_type: ScalarType,
    /// Scalars per voxel: 3 for RGB, 2 for complex.
    pub components: usize,
}

impl VoxelType {
    /// Looks up a NIFTI_TYPE_* code of nifti1.h.
    pub fn from_code(code: i64) -> Result<Self, String> {
        let (scalar_type, components) = match code {
            2 => (ScalarType::U8, 1),
            4 => (ScalarType::I16, 1),
            8 => (ScalarType::I32, 1),
            16 => (ScalarType::F32, 1),
            32 => (ScalarType::F32, 2),
            64 => (ScalarType::F64, 1),
            128 => (ScalarType::U8, 3),
            256 => (ScalarType::I8, 1),
            512 => (ScalarType::U16, 1),
            768 => (ScalarType::U32, 1),
            1024 => (ScalarType::I64, 1),
            1280 => (ScalarType::U64, 1),
            1792 => (ScalarType::F64, 2),
            2304 => (ScalarType::U8, 4),
            _ => return Err(format!("datatype {code} is not supported")),
        };
        Ok(Self { scalar_type, components })
    }
}

impl Header {
    /// Parses a header from the first [`MAX_LEN`] bytes of a file, or fewer if the file is shorter. `is_pair`: the
    /// voxels are in a separate file.
    ///
    /// # Errors
    /// Returns a message that names the invalid field.
    pub fn parse(bytes: &[u8], is_pair: bool) -> Result<Self, String> {
        let word: [u8; 4] = bytes.get(..4).and_then(|b| b.try_into().ok()).ok_or("is too short for a NIfTI header")?;
        let (version, big_endian) = match (u32::from_le_bytes(word), u32::from_be_bytes(word)) {
            (348, _) => (1, false),
            (_, 348) => (1, true),
            (540, _) => (2, false),
            (_, 540) => (2, true),
            _ => return Err("is not a NIfTI file: the header's length is neither 348 nor 540".into()),
        };
        let len = if version == 1 { LEN_1 } else { MAX_LEN };
        let bytes = bytes.get(..len).ok_or("ends within the NIfTI header")?;
        let fields = Fields { bytes, big_endian };
        let kind = kind(bytes, version, is_pair)?;
        let raw = if version == 1 { Raw::nifti1(fields) } else { Raw::nifti2(fields) };
        raw.check(kind, big_endian)
    }

    /// Number of scalars in the file.
    pub fn numbers(&self) -> usize {
        self.shape.iter().product::<usize>() * self.voxel.components
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Single,
    Pair,
    Analyze,
}

fn kind(bytes: &[u8], version: u8, is_pair: bool) -> Result<Kind, String> {
    let (magic, single, pair): (_, &[u8], &[u8]) = match version {
        1 => (&bytes[344..348], b"n+1\0", b"ni1\0"),
        _ => (&bytes[4..12], b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"),
    };
    match is_pair {
        false if magic == single => Ok(Kind::Single),
        true if magic == pair || magic == single => Ok(Kind::Pair),
        // ANALYZE stores other fields in place of the NIfTI magic number.
        true if version == 1 => Ok(Kind::Analyze),
        _ => Err("is not a NIfTI file: wrong magic number".into()),
    }
}

/// Header fields used here, common to both versions.
struct Raw {
    dim: [i64; 8],
    datatype: i64,
    vox_offset: f64,
    scl: (f64, f64),
    forms: NiftiForms,
}

impl Raw {
    /// Reads a NIfTI-1 header; byte offsets from nifti1.h.
    fn nifti1(f: Fields) -> Self {
        let dim: [i64; 8] = std::array::from_fn(|i| f.i16(40 + 2 * i));
        Self {
            dim,
            datatype: f.i16(70),
            vox_offset: f.f32(108),
            scl: (f.f32(112), f.f32(116)),
            forms: NiftiForms {
                is_plane: dim[0] == 2,
                units: f.bytes[123] & 7,
                pixdim: std::array::from_fn(|i| f.f32(76 + 4 * i)),
                qform_code: f.i16(252) as i16,
                sform_code: f.i16(254) as i16,
                quaternion: std::array::from_fn(|i| f.f32(256 + 4 * i)),
                offset: std::array::from_fn(|i| f.f32(268 + 4 * i)),
                sform: std::array::from_fn(|row| std::array::from_fn(|i| f.f32(280 + 16 * row + 4 * i))),
            },
        }
    }

    /// Reads a NIfTI-2 header; byte offsets from nifti2.h.
    fn nifti2(f: Fields) -> Self {
        let dim: [i64; 8] = std::array::from_fn(|i| f.i64(16 + 8 * i));
        Self {
            dim,
            datatype: f.i16(12),
            vox_offset: f.i64(168) as f64,
            scl: (f.f64(176), f.f64(184)),
            forms: NiftiForms {
                is_plane: dim[0] == 2,
                units: (f.i32(500) & 7) as u8,
                pixdim: std::array::from_fn(|i| f.f64(104 + 8 * i)),
                qform_code: f.i32(344) as i16,
                sform_code: f.i32(348) as i16,
                quaternion: std::array::from_fn(|i| f.f64(352 + 8 * i)),
                offset: std::array::from_fn(|i| f.f64(376 + 8 * i)),
                sform: std::array::from_fn(|row| std::array::from_fn(|i| f.f64(400 + 32 * row + 8 * i))),
            },
        }
    }

    fn check(self, kind: Kind, big_endian: bool) -> Result<Header, String> {
        let voxel = VoxelType::from_code(self.datatype)?;
        let shape @ [_, z, y, x] = self.shape()?;
        let (offset, scaling) = (self.offset(kind)?, self.scaling()?);
        let (forms, is_analyze) = (self.forms, kind == Kind::Analyze);
        // ANALYZE has other fields in the place of the forms.
        let forms = if is_analyze { NiftiForms { qform_code: 0, sform_code: 0, units: 0, ..forms } } else { forms };
        let (mut geometry, remark) = forms.geometry([x, y, z])?;
        geometry.nifti = (!is_analyze).then(|| Box::new(forms.repaired(&geometry)));
        Ok(Header { shape, voxel, big_endian, offset, scaling, geometry, remark })
    }

    fn shape(&self) -> Result<[usize; 4], String> {
        let count = usize::try_from(self.dim[0]).ok().filter(|count| (1..=7).contains(count));
        let count = count.ok_or_else(|| format!("dim[0] is {}; the number of axes must be 1 to 7", self.dim[0]))?;
        let mut extents = [1usize; 7];
        for (axis, extent) in extents.iter_mut().enumerate().take(count) {
            let dim = self.dim[axis + 1];
            *extent = usize::try_from(dim)
                .ok()
                .filter(|extent| *extent > 0)
                .ok_or_else(|| format!("dim[{}] is {dim}; an axis has at least one voxel", axis + 1))?;
        }
        let channels = extents[3..].iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        let too_large = || format!("declares {extents:?} voxels, over the addressable size");
        let shape = [channels.ok_or_else(too_large)?, extents[2], extents[1], extents[0]];
        let voxels = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        // 16 bytes is the largest voxel size.
        voxels.and_then(|voxels| voxels.checked_mul(16)).ok_or_else(too_large)?;
        Ok(shape)
    }

    fn offset(&self, kind: Kind) -> Result<u64, String> {
        let smallest = if kind == Kind::Single { LEN_1 as f64 + 4.0 } else { 0.0 };
        // Pairs may have an offset of 0, single files may not; neither may be NaN.
        if self.vox_offset.is_nan() || self.vox_offset < smallest || self.vox_offset > 1e15 {
            return Err(format!("vox_offset is {}; must be at least {smallest}", self.vox_offset));
        }
        Ok(self.vox_offset as u64)
    }

    /// Slope and intercept; `None` if the slope is 0 or not finite, which means no scaling.
    fn scaling(&self) -> Result<Option<(f64, f64)>, String> {
        let (slope, intercept) = self.scl;
        if slope == 0.0 || !slope.is_finite() {
            return Ok(None);
        }
        if !intercept.is_finite() {
            return Err(format!("scl_inter is {intercept}"));
        }
        Ok((slope != 1.0 || intercept != 0.0).then_some((slope, intercept)))
    }
}

/// Reads scalars of a header by byte offset; the length was checked, so that all offsets are in bounds.
#[derive(Clone, Copy)]
struct Fields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Fields<'_> {
    fn raw<const N: usize>(self, at: usize) -> [u8; N] {
        let mut bytes: [u8; N] = self.bytes[at..at + N].try_into().expect("N bytes");
        if self.big_endian {
            bytes.reverse();
        }
        bytes
    }

    fn i16(self, at: usize) -> i64 {
        i16::from_le_bytes(self.raw(at)).into()
    }

    fn i32(self, at: usize) -> i64 {
        i32::from_le_bytes(self.raw(at)).into()
    }

    fn i64(self, at: usize) -> i64 {
        i64::from_le_bytes(self.raw(at))
    }

    fn f32(self, at: usize) -> f64 {
        f32::from_le_bytes(self.raw(at)).into()
    }

    fn f64(self, at: usize) -> f64 {
        f64::from_le_bytes(self.raw(at))
    }
}
