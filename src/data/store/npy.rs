//! Four-dimensional NumPy files: written whole, read through a memory map.
//!
//! The format is described in `numpy/lib/format.py`: a magic string, a version, the length of the header, and the
//! header, a Python dictionary literal padded with spaces so that the data starts at a multiple of 64 bytes.

use std::fs::File;
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::path::Path;

use ndarray::ArrayView4;

use super::StoreError;
use nnunet_core::fsio;
use nnunet_core::mapped::MappedFile;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Alignment of the data offset, so that a mapped file can be read as any element type.
const ALIGNMENT: usize = 64;
/// Maximum accepted header size in bytes; headers written here have at most 128 bytes.
const MAX_HEADER: usize = 64 << 10;
const TOO_SHORT: &str = "truncated within the header; preprocess again";

/// An element type of stored arrays.
pub trait NpyElement: bytemuck::Pod + Send + Sync {
    /// NumPy name (`descr`) of the type in native byte order.
    const DESCR: &'static str;
}

impl NpyElement for f32 {
    const DESCR: &'static str = if cfg!(target_endian = "little") { "<f4" } else { ">f4" };
}

impl NpyElement for i16 {
    const DESCR: &'static str = if cfg!(target_endian = "little") { "<i2" } else { ">i2" };
}

/// Labels in nnU-Net's own preprocessed folders.
impl NpyElement for i8 {
    const DESCR: &'static str = "|i1";
}

/// Writes an array in C order with [`fsio::write_unsynced`].
pub fn write<T: NpyElement>(path: &Path, array: ArrayView4<T>) -> Result<(), StoreError> {
    let header = encode_header::<T>(array.shape());
    let array = array.as_standard_layout();
    let elements = array.as_slice().expect("as_standard_layout gives C order");
    fsio::write_unsynced(path, |file| {
        file.write_all(&header)?;
        file.write_all(bytemuck::cast_slice(elements))
    })
    .map_err(|error| StoreError::new(path, format!("cannot write: {error}")))
}

/// A memory-mapped file of `T` in C order with four dimensions.
///
/// The store replaces files by renaming and never changes them in place, so the contents of a mapping are stable.
pub(super) struct MappedArray<T> {
    map: MappedFile,
    data_at: usize,
    shape: [usize; 4],
    element: PhantomData<T>,
}

impl<T: NpyElement> MappedArray<T> {
    /// Maps the file after checking its header and length.
    ///
    /// # Errors
    /// Returns an error if the file is missing, is not a C-order four-dimensional NumPy file of `T`, or is shorter or
    /// longer than its header states.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |defect: String| StoreError::new(path, defect);
        let file = File::open(path).map_err(|error| fail(format!("cannot open: {error}; preprocess again")))?;
        let map =
            MappedFile::from_file(&file, path).map_err(|error| fail(format!("cannot map into memory: {error}")))?;
        let (data_at, shape) = decode_header::<T>(&map).map_err(fail)?;
        let expected = byte_length::<T>(data_at, shape)
            .ok_or_else(|| fail(format!("the shape {shape:?} in the header is too large")))?;
        if map.len() != expected {
            return Err(fail(format!(
                "is {} bytes long, but the shape {shape:?} in the header requires {expected}; preprocess again",
                map.len()
            )));
        }
        bytemuck::try_cast_slice::<u8, T>(&map[data_at..])
            .map_err(|_| fail(format!("the data offset {data_at} is not aligned; preprocess again")))?;
        Ok(Self { map, data_at, shape, element: PhantomData })
    }

    /// Returns the shape stated in the header.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Returns all elements in C order.
    pub fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[self.data_at..])
    }
}

/// Returns the size of the whole file in bytes, or `None` on overflow.
pub fn byte_length<T>(data_at: usize, shape: [usize; 4]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
    elements.checked_mul(size_of::<T>())?.checked_add(data_at)
}

/// Returns the file header of an array of this shape.
pub fn encode_header<T: NpyElement>(shape: &[usize]) -> Vec<u8> {
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", T::DESCR, extents.join(", "));
    let prefix = MAGIC.len() + 4;
    // The newline at the end of the header counts towards the alignment.
    let total = (prefix + text.len() + 1).next_multiple_of(ALIGNMENT);
    text.push_str(&" ".repeat(total - prefix - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(text.len()).expect("a header of four extents fits into 64 KiB");
    [MAGIC.as_slice(), &[1, 0], &length.to_le_bytes(), text.as_bytes()].concat()
}

/// Reads the header; returns its size in bytes and the shape, or a description of the problem.
pub fn read_header<T: NpyElement>(reader: &mut impl Read) -> Result<(usize, [usize; 4]), String> {
    let mut bytes = Vec::new();
    let mut read = |bytes: &mut Vec<u8>, length: usize| {
        let known = bytes.len();
        bytes.resize(length.max(known), 0);
        reader.read_exact(&mut bytes[known..]).map_err(|error| format!("truncated within the header: {error}"))
    };
    read(&mut bytes, 12)?;
    let (text_at, length) = header_text(&bytes)?;
    read(&mut bytes, text_at + length)?;
    decode_header::<T>(&bytes)
}

/// Parses the header; returns the data offset in bytes and the shape, or a description of the problem.
pub fn decode_header<T: NpyElement>(bytes: &[u8]) -> Result<(usize, [usize; 4]), String> {
    let (text_at, length) = header_text(bytes)?;
    let text = bytes.get(text_at..text_at + length).ok_or(TOO_SHORT)?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is not text")?;

    let descr = dictionary_value(text, "descr")?;
    let descr = descr.split(['\'', '"']).nth(1).unwrap_or(descr);
    if descr != T::DESCR {
        return Err(format!("has element type {descr}, expected {}", T::DESCR));
    }
    if !dictionary_value(text, "fortran_order")?.starts_with("False") {
        return Err("is in Fortran order, expected C order".into());
    }
    Ok((text_at + length, parse_shape(dictionary_value(text, "shape")?)?))
}

/// Returns the offset and length of the header text.
fn header_text(bytes: &[u8]) -> Result<(usize, usize), String> {
    if bytes.get(..6) != Some(MAGIC) {
        return Err("not a NumPy file".into());
    }
    let (text_at, length) = match bytes.get(6..12) {
        Some(&[1, _, low, high, ..]) => (10, usize::from(u16::from_le_bytes([low, high]))),
        Some(&[2 | 3, _, a, b, c, d]) => (12, u32::from_le_bytes([a, b, c, d]) as usize),
        Some(&[version, ..]) => return Err(format!("unsupported NumPy format version {version}")),
        _ => return Err(TOO_SHORT.into()),
    };
    if length > MAX_HEADER {
        return Err(format!("declares a header of {length} bytes, over the limit of {MAX_HEADER}"));
    }
    Ok((text_at, length))
}

/// Returns the text after `'key':` in a Python dictionary literal.
fn dictionary_value<'a>(text: &'a str, key: &str) -> Result<&'a str, String> {
    let quoted = format!("'{key}'");
    let (_, rest) = text.split_once(&quoted).ok_or_else(|| format!("the header has no {key}"))?;
    rest.trim_start().strip_prefix(':').map(str::trim_start).ok_or_else(|| format!("the header's {key} has no value"))
}

fn parse_shape(value: &str) -> Result<[usize; 4], String> {
    let extents: Option<Vec<usize>> = value
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(inside, _)| inside.split(',').map(str::trim).filter(|part| !part.is_empty()))
        .and_then(|parts| parts.map(|part| part.parse().ok()).collect());
    let extents = extents.ok_or("the header's shape is not a tuple of numbers")?;
    <[usize; 4]>::try_from(extents).map_err(|extents| format!("has shape {extents:?}, expected four dimensions"))
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;

    #[test]
    fn the_header_matches_numpy() {
        let bytes = encode_header::<f32>(&[1, 35, 51, 35]);
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 35, 51, 35), }";
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(std::str::from_utf8(&bytes[10..]).unwrap(), format!("{text:117}\n"));
        assert_eq!(decode_header::<f32>(&bytes).unwrap(), (128, [1, 35, 51, 35]));
    }

    #[test]
    fn arrays_of_any_memory_order_survive_a_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let array = Array4::from_shape_fn((2, 3, 4, 5), |(c, z, y, x)| (c * 1000 + z * 100 + y * 10 + x) as i16);
        let swapped = array.view().permuted_axes([0, 3, 1, 2]);
        write(&path, swapped).unwrap();
        let mapped = MappedArray::<i16>::open(&path).unwrap();
        assert_eq!(mapped.shape(), [2, 5, 3, 4]);
        assert_eq!(mapped.as_slice(), swapped.iter().copied().collect::<Vec<_>>());
    }

    #[test]
    fn rejects_files_of_other_types() {
        let defect = |bytes: &[u8]| decode_header::<f32>(bytes).unwrap_err();
        let with = |text: &str| {
            let length = (text.len() as u16).to_le_bytes();
            [MAGIC.as_slice(), &[1, 0], &length, text.as_bytes()].concat()
        };
        assert!(defect(b"{}").contains("not a NumPy file"));
        assert!(defect(&encode_header::<f32>(&[1, 2, 3, 4])[..50]).contains("truncated within the header"));
        assert!(defect(&encode_header::<i16>(&[1, 2, 3, 4])).contains("<i2"));
        assert!(defect(&with("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2, 3, 4), }")).contains("Fortran"));
        assert!(defect(&with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }")).contains("[3, 4]"));
        assert!(defect(&with("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }")).contains("tuple"));
        assert!(defect(&with("{'descr': '<f4', 'shape': (1, 2, 3, 4), }")).contains("fortran_order"));
        assert!(defect(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").contains("header of"));
    }
}
