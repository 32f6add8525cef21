//! Parsing of MetaImage headers.

use std::collections::HashMap;
use std::path::Path;

use crate::raw_voxels::{Encoding, RawVoxels, describe_io_error, file_len, is_gzip, resolve_data_file};
use crate::text_header::{TextHeader, extents, numbers};
use crate::volume::Plane;
use crate::{Geometry, ImageError, ScalarType};

/// The field that ends a header.
const LAST: &str = "ElementDataFile";

/// A validated header.
pub struct Header {
    /// `(image, z, y, x)`; `image` is the fourth axis of the file.
    pub shape: [usize; 4],
    /// Scalars per voxel.
    pub components: usize,
    pub raw_voxels: RawVoxels,
    pub geometry: Geometry,
}

impl Header {
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let text = TextHeader::read(path, |line| line.split('=').next().is_some_and(|key| key.trim() == LAST))?;
        let pairs = text.lines.iter().filter_map(|line| line.split_once('='));
        let fields = Fields(pairs.map(|(key, value)| (key.trim(), value.trim())).collect());
        fields.header(path, text.len).map_err(|defect| ImageError::new(path, defect))?
    }
}

/// Header fields by name.
struct Fields<'a>(HashMap<&'a str, &'a str>);

impl Fields<'_> {
    /// The outer error is a defect of the header, the inner one a defect of a file.
    fn header(&self, path: &Path, len: u64) -> Result<Result<Header, ImageError>, String> {
        let data_file = self.get(&[LAST]).ok_or("is not a MetaImage file: its header has no ElementDataFile")?;
        if let Some(kind) = self.get(&["ObjectType"]).filter(|kind| *kind != "Image") {
            return Err(format!("ObjectType is {kind}, not Image"));
        }
        let axes: usize = self.one("NDims")?.ok_or("its header has no NDims")?;
        if !(2..=4).contains(&axes) {
            return Err(format!("NDims is {axes}; supported are 2 or 3 spatial axes and one channel axis"));
        }
        let size = extents("DimSize", self.get(&["DimSize"]).ok_or("its header has no DimSize")?, axes)?;
        let extent = |axis: usize| size.get(axis).copied().unwrap_or(1);
        let shape = [extent(3), extent(2), extent(1), extent(0)];
        let components = self.one("ElementNumberOfChannels")?.unwrap_or(1usize);
        let scalar_type = parse_element_type(self.get(&["ElementType"]).ok_or("its header has no ElementType")?)?;
        let count = shape.iter().try_fold(components, |count, extent| count.checked_mul(*extent));
        let count = count
            .filter(|count| *count > 0 && *count <= isize::MAX as usize / 8)
            .ok_or_else(|| format!("ElementNumberOfChannels is {components}"))?;
        let geometry = self.geometry(axes)?;
        Ok(self.raw_voxels(path, data_file, len, scalar_type, count).map(|raw_voxels| Header {
            shape,
            components,
            raw_voxels,
            geometry,
        }))
    }

    fn raw_voxels(
        &self,
        path: &Path,
        data_file: &str,
        len: u64,
        scalar_type: ScalarType,
        count: usize,
    ) -> Result<RawVoxels, ImageError> {
        let fail = |defect: String| ImageError::new(path, defect);
        if data_file.starts_with("LIST") || data_file.contains('%') {
            let remedy = "one file per slice is not supported; convert it with SimpleITK or `c3d IN -o OUT.mha`";
            return Err(fail(format!("{LAST} is {data_file}: {remedy}")));
        }
        let (file, mut begin) = match data_file {
            "LOCAL" | "Local" | "local" => (path.to_owned(), len),
            name => (resolve_data_file(path, LAST, name)?, 0),
        };
        let packed = self.flag(&["CompressedData"]).map_err(fail)?;
        let encoding = match (self.flag(&["BinaryData"]).map_err(fail)?.unwrap_or(true), packed.unwrap_or(false)) {
            (false, _) => Encoding::Text,
            (true, false) => Encoding::Raw,
            (true, true) => {
                match is_gzip(&file, begin).map_err(|error| ImageError::new(&file, describe_io_error(&error)))? {
                    true => Encoding::Gzip,
                    false => Encoding::Zlib,
                }
            }
        };
        match self.one::<i64>("HeaderSize").map_err(fail)?.unwrap_or(0) {
            0 => {}
            // The voxels are the last bytes of the file.
            -1 if encoding == Encoding::Raw => {
                begin = file_len(&file)?
                    .saturating_sub((count as u64).saturating_mul(scalar_type.size() as u64))
                    .max(begin);
            }
            bytes if bytes > 0 => begin = begin.saturating_add(bytes as u64),
            bytes => return Err(fail(format!("HeaderSize is {bytes}"))),
        }
        let big_endian = self.flag(&["BinaryDataByteOrderMSB", "ElementByteOrderMSB"]).map_err(fail)?.unwrap_or(false);
        Ok(RawVoxels { path: file, begin, skip: 0, encoding, scalar_type, big_endian, count, scaling: None })
    }

    fn geometry(&self, axes: usize) -> Result<Geometry, String> {
        let list = |names: &[&str], count: usize, default: &dyn Fn(usize) -> f64| match self.get(names) {
            None => Ok((0..count).map(default).collect()),
            Some(value) => {
                let values: Vec<f64> = numbers(names[0], value)?;
                match values.len() == count {
                    true => Ok(values),
                    false => Err(format!("{} has {} entries, not {count}", names[0], values.len())),
                }
            }
        };
        let spacing = list(&["ElementSpacing", "ElementSize"], axes, &|_| 1.0)?;
        let origin = list(&["Offset", "Position", "Origin"], axes, &|_| 0.0)?;
        let one = |entry: usize| f64::from(u8::from(entry.is_multiple_of(axes + 1)));
        let matrix = list(&["TransformMatrix", "Rotation", "Orientation"], axes * axes, &one)?;
        // The file lists the directions axis by axis; `direction` has them as columns.
        let cosine = |row: usize, axis: usize| {
            let cosine = matrix[axis * axes + row];
            if spacing[axis] < 0.0 { -cosine } else { cosine }
        };
        let geometry = match axes {
            2 => Geometry::from_plane(&Plane {
                spacing: [spacing[0].abs(), spacing[1].abs()],
                origin: [origin[0], origin[1]],
                direction: [[cosine(0, 0), cosine(0, 1)], [cosine(1, 0), cosine(1, 1)]],
            }),
            _ => Geometry {
                spacing: [spacing[2].abs(), spacing[1].abs(), spacing[0].abs()],
                origin: [origin[0], origin[1], origin[2]],
                direction: std::array::from_fn(|row| std::array::from_fn(|axis| cosine(row, axis))),
                ..Geometry::default()
            },
        };
        match geometry.invalid_value() {
            Some(defect) => Err(format!("its header states {defect}")),
            None => Ok(geometry),
        }
    }

    /// Value of the first of these fields that is present.
    fn get(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.0.get(name).copied())
    }

    fn one<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let parse = |value: &str| value.parse().map_err(|_| format!("{name} is {value:?}, not a valid number"));
        self.get(&[name]).map(parse).transpose()
    }

    fn flag(&self, names: &[&str]) -> Result<Option<bool>, String> {
        let parse = |value: &str| match value.bytes().next().map(|letter| letter.to_ascii_lowercase()) {
            Some(b't' | b'1') => Ok(true),
            Some(b'f' | b'0') => Ok(false),
            _ => Err(format!("{} is {value:?}, neither True nor False", names[0])),
        };
        self.get(names).map(parse).transpose()
    }
}

/// `MET_LONG` has 4 bytes, regardless of the size of `long` in C.
fn parse_element_type(name: &str) -> Result<ScalarType, String> {
    Ok(match name.strip_suffix("_ARRAY").unwrap_or(name) {
        "MET_CHAR" | "MET_ASCII_CHAR" => ScalarType::I8,
        "MET_UCHAR" => ScalarType::U8,
        "MET_SHORT" => ScalarType::I16,
        "MET_USHORT" => ScalarType::U16,
        "MET_INT" | "MET_LONG" => ScalarType::I32,
        "MET_UINT" | "MET_ULONG" => ScalarType::U32,
        "MET_LONG_LONG" => ScalarType::I64,
        "MET_ULONG_LONG" => ScalarType::U64,
        "MET_FLOAT" => ScalarType::F32,
        "MET_DOUBLE" => ScalarType::F64,
        _ => return Err(format!("ElementType {name} is not supported")),
    })
}
