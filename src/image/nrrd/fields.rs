//! Fields of an NRRD header.

use std::collections::HashMap;
use std::path::Path;

use crate::raw_voxels::{Encoding, RawVoxels, file_len, resolve_data_file};
use crate::text_header::extents;
use crate::{ImageError, ScalarType};

/// Header fields by lower-case name.
pub struct Fields<'a>(HashMap<String, &'a str>);

impl<'a> Fields<'a> {
    /// Parses header lines. Comments and `key:=value` pairs are ignored; they do not describe the voxels.
    pub fn parse(lines: &'a [String]) -> Self {
        let fields = lines.iter().skip(1).filter(|line| !line.starts_with('#') && !line.contains(":="));
        let pairs = fields.filter_map(|line| line.split_once(':'));
        Self(pairs.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim())).collect())
    }

    /// Value of the first of these fields that is present.
    pub fn get(&self, names: &[&str]) -> Option<&'a str> {
        names.iter().find_map(|name| self.0.get(*name).copied())
    }

    pub fn size(&self) -> Result<Vec<usize>, String> {
        let dimension = self.get(&["dimension"]).ok_or("its header has no dimension")?;
        let axes = dimension.parse::<usize>().ok().filter(|axes| (2..=4).contains(axes));
        let axes = axes.ok_or_else(|| {
            format!("dimension is {dimension}; supported are 2 or 3 spatial axes and one channel axis")
        })?;
        extents("sizes", self.get(&["sizes"]).ok_or("its header has no sizes")?, axes)
    }

    pub fn raw_voxels(&self, path: &Path, len: u64, count: usize) -> Result<RawVoxels, ImageError> {
        let fail = |defect: String| ImageError::new(path, defect);
        let kind = self.get(&["type"]).ok_or_else(|| fail("its header has no type".into()))?;
        let scalar_type = parse_scalar_type(kind).ok_or_else(|| fail(format!("type {kind} is not supported")))?;
        let name = self.get(&["encoding"]).ok_or_else(|| fail("its header has no encoding".into()))?;
        let encoding = match name.to_ascii_lowercase().as_str() {
            "raw" => Encoding::Raw,
            "gzip" | "gz" => Encoding::Gzip,
            "ascii" | "text" | "txt" => Encoding::Text,
            _ => return Err(fail(format!("encoding {name} is not supported; supported are raw, gzip and ascii"))),
        };
        let big_endian = match self.get(&["endian"]) {
            Some("little") => false,
            Some("big") => true,
            None if scalar_type.size() == 1 || encoding == Encoding::Text => false,
            other => {
                return Err(fail(format!("endian is {}, neither little nor big", other.unwrap_or("missing"))));
            }
        };
        let (file, mut begin) = match self.get(&["data file", "datafile"]) {
            None => (path.to_owned(), len),
            Some(name) if name.starts_with("LIST") || name.contains('%') => {
                let remedy = "one file per slice is not supported; convert it with SimpleITK or `unu save -f nrrd`";
                return Err(fail(format!("data file is {name}: {remedy}")));
            }
            Some(name) => (resolve_data_file(path, "data file", name)?, 0),
        };
        if let Some(lines) = self.get(&["line skip", "lineskip"]).filter(|lines| *lines != "0") {
            return Err(fail(format!("line skip is {lines}; only 0 is supported")));
        }
        let mut skip = 0;
        match self.get(&["byte skip", "byteskip"]) {
            None => {}
            // The voxels are the last bytes of the file.
            Some("-1") if encoding == Encoding::Raw => {
                begin = file_len(&file)?
                    .saturating_sub((count as u64).saturating_mul(scalar_type.size() as u64))
                    .max(begin);
            }
            Some(bytes) => skip = bytes.parse().map_err(|_| fail(format!("byte skip is {bytes}")))?,
        }
        Ok(RawVoxels { path: file, begin, skip, encoding, scalar_type, big_endian, count, scaling: None })
    }
}

/// Type names of the format definition, section 5: all spellings of the C types.
fn parse_scalar_type(name: &str) -> Option<ScalarType> {
    let words: Vec<_> = name.split_ascii_whitespace().filter(|word| !["int", "signed"].contains(word)).collect();
    Some(match (words.join(" ").as_str(), name) {
        (_, "int" | "signed int") | ("int32" | "int32_t", _) => ScalarType::I32,
        ("char" | "int8" | "int8_t", _) => ScalarType::I8,
        ("uchar" | "unsigned char" | "uint8" | "uint8_t", _) => ScalarType::U8,
        ("short" | "int16" | "int16_t", _) => ScalarType::I16,
        ("ushort" | "unsigned short" | "uint16" | "uint16_t", _) => ScalarType::U16,
        ("uint" | "unsigned" | "uint32" | "uint32_t", _) => ScalarType::U32,
        ("longlong" | "long long" | "int64" | "int64_t", _) => ScalarType::I64,
        ("ulonglong" | "unsigned long long" | "uint64" | "uint64_t", _) => ScalarType::U64,
        ("float", _) => ScalarType::F32,
        ("double", _) => ScalarType::F64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_known_in_all_spellings() {
        for (name, scalar_type) in [
            ("signed char", ScalarType::I8),
            ("short int", ScalarType::I16),
            ("signed short", ScalarType::I16),
            ("unsigned short int", ScalarType::U16),
            ("int", ScalarType::I32),
            ("unsigned int", ScalarType::U32),
            ("long long int", ScalarType::I64),
            ("unsigned long long", ScalarType::U64),
            ("double", ScalarType::F64),
        ] {
            assert_eq!(parse_scalar_type(name), Some(scalar_type), "{name}");
        }
        assert_eq!(parse_scalar_type("block"), None);
        assert_eq!(parse_scalar_type("signed"), None);
    }
}
