//! Parsing of NRRD headers: fields, axes (spatial or channel) and geometry.

use std::collections::HashMap;
use std::path::Path;

use crate::raw_voxels::{Encoding, RawVoxels, file_len, resolve_data_file};
use crate::text_header::{TextHeader, extents, numbers};
use crate::volume::Plane;
use crate::{Geometry, ImageError, ScalarType};

/// A validated header.
pub struct Header {
    /// Extents in file order, fastest axis first.
    pub size: Vec<usize>,
    pub axes: Axes,
    pub raw_voxels: RawVoxels,
}

impl Header {
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let text = TextHeader::read(path, str::is_empty)?;
        let fail = |defect: String| ImageError::new(path, defect);
        if !text.lines.first().is_some_and(|magic| magic.starts_with("NRRD000")) {
            return Err(fail("is not an NRRD file: it does not start with NRRD000".into()));
        }
        let fields = Fields::parse(&text.lines);
        let size = fields.size().map_err(fail)?;
        let axes = Axes::new(&fields, &size).map_err(fail)?;
        let raw_voxels = fields.raw_voxels(path, text.len, size.iter().product())?;
        Ok(Self { size, axes, raw_voxels })
    }

    /// File indices of the axes `(channel, z, y, x)`; `None` for an axis the file does not have.
    pub fn order(&self) -> [Option<usize>; 4] {
        let spatial = |axis: usize| self.axes.spatial.get(axis).copied();
        [self.axes.channel, spatial(2), spatial(1), spatial(0)]
    }
}

/// Meaning of the axes of a file.
pub struct Axes {
    /// File indices of the axes x, y and, for 3D, z.
    pub spatial: Vec<usize>,
    pub channel: Option<usize>,
    pub geometry: Geometry,
}

impl Axes {
    pub fn new(fields: &Fields, size: &[usize]) -> Result<Self, String> {
        let vectors = vectors(fields, size.len())?;
        let kinds: Vec<&str> =
            fields.get(&["kinds"]).map(|kinds| kinds.split_ascii_whitespace().collect()).unwrap_or_default();
        let is_spatial = |axis: usize| {
            let kind = kinds.get(axis).copied().unwrap_or("???");
            let of_space =
                ["domain", "space", "???", "none"].iter().any(|of_space| kind.eq_ignore_ascii_case(of_space));
            of_space && vectors.as_ref().is_none_or(|vectors| vectors[axis].is_some())
        };
        let (mut spatial, mut others): (Vec<usize>, Vec<usize>) = (0..size.len()).partition(|axis| is_spatial(*axis));
        if spatial.len() == 4 {
            others.extend(spatial.pop());
        }
        if others.len() > 1 || spatial.len() < 2 {
            let (all, of_space) = (size.len(), spatial.len());
            return Err(format!("kinds: {of_space} of {all} axes are spatial; at most one axis may hold channels"));
        }
        let geometry = match &vectors {
            Some(vectors) => oriented(fields, &spatial, vectors)?,
            None => upright(fields, &spatial, size.len())?,
        };
        match geometry.invalid_value() {
            Some(defect) => Err(format!("its header states {defect}")),
            None => Ok(Self { spatial, channel: others.pop(), geometry }),
        }
    }
}

/// Parses `space directions`: one vector or `none` per axis.
fn vectors(fields: &Fields, axes: usize) -> Result<Option<Vec<Option<Vec<f64>>>>, String> {
    let Some(text) = fields.get(&["space directions"]) else { return Ok(None) };
    // Vectors may contain spaces.
    let mut vectors = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = match rest.starts_with('(') {
            true => rest.find(')').map(|at| at + 1).ok_or_else(|| format!("space directions is {text:?}: no `)`"))?,
            false => rest.find([' ', '\t', '(']).unwrap_or(rest.len()),
        };
        vectors.push(match &rest[..end] {
            "none" => None,
            vector => Some(vector_of("space directions", vector)?),
        });
        rest = rest[end..].trim_start();
    }
    match vectors.len() == axes {
        true => Ok(Some(vectors)),
        false => Err(format!("space directions has {} entries for {axes} axes", vectors.len())),
    }
}

/// Parses a vector, e.g. `(1, 2, 3)`.
fn vector_of(field: &str, text: &str) -> Result<Vec<f64>, String> {
    let inner = text.trim().strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
    numbers(field, &inner.ok_or_else(|| format!("{field} is {text:?}, not a vector"))?.replace(',', " "))
}

/// Geometry from `space directions` and `space origin`.
fn oriented(fields: &Fields, spatial: &[usize], vectors: &[Option<Vec<f64>>]) -> Result<Geometry, String> {
    let axes = spatial.len();
    let signs = to_lps(fields.get(&["space"]).unwrap_or_default())?;
    let columns: Vec<&[f64]> = spatial.iter().filter_map(|axis| vectors[*axis].as_deref()).collect();
    let origin = match fields.get(&["space origin"]) {
        Some(origin) => vector_of("space origin", origin)?,
        None => vec![0.0; columns.first().map_or(0, |column| column.len())],
    };
    // A fourth component belongs to a fourth axis, which is read as channels.
    let fits = |vector: &[f64]| vector.len() == axes || (axes == 3 && vector.len() == 4);
    if !columns.iter().all(|column| fits(column)) || !fits(&origin) {
        return Err(format!("space directions: the vectors must have {axes} components, one per spatial axis"));
    }
    let length = |axis: usize| columns[axis][..axes].iter().map(|mm| mm * mm).sum::<f64>().sqrt();
    let cosine = |row: usize, axis: usize| columns[axis][row] / length(axis) * signs[row];
    Ok(match axes {
        2 => Geometry::from_plane(&Plane {
            spacing: [length(0), length(1)],
            origin: [origin[0] * signs[0], origin[1] * signs[1]],
            direction: [[cosine(0, 0), cosine(0, 1)], [cosine(1, 0), cosine(1, 1)]],
        }),
        _ => Geometry {
            spacing: [length(2), length(1), length(0)],
            origin: std::array::from_fn(|row| origin[row] * signs[row]),
            direction: std::array::from_fn(|row| std::array::from_fn(|axis| cosine(row, axis))),
            ..Geometry::default()
        },
    })
}

/// Signs of x, y and z that convert the space to LPS.
fn to_lps(space: &str) -> Result<[f64; 3], String> {
    match space.to_ascii_lowercase().as_str() {
        "right-anterior-superior" | "ras" => Ok([-1.0, -1.0, 1.0]),
        "left-anterior-superior" | "las" => Ok([1.0, -1.0, 1.0]),
        "" | "left-posterior-superior" | "lps" => Ok([1.0; 3]),
        // Treated as LPS, as in ITK.
        "scanner-xyz" | "3d-right-handed" | "3d-left-handed" => Ok([1.0; 3]),
        _ => Err(format!("space {space} is not supported")),
    }
}

/// Geometry from `spacings` and `axis mins`, for files without `space directions`.
fn upright(fields: &Fields, spatial: &[usize], axes: usize) -> Result<Geometry, String> {
    let list = |name: &str, default: f64| -> Result<Vec<f64>, String> {
        let Some(value) = fields.get(&[name, &name.replace(' ', "")]) else { return Ok(vec![default; axes]) };
        let values: Vec<f64> = numbers(name, value)?;
        match values.len() == axes {
            // Entries of non-spatial axes are NaN.
            true => {
                Ok(spatial.iter().map(|axis| if values[*axis].is_nan() { default } else { values[*axis] }).collect())
            }
            false => Err(format!("{name} has {} entries for {axes} axes", values.len())),
        }
    };
    let spacing = list("spacings", 1.0)?;
    let mins = list("axis mins", f64::NAN)?;
    let centers: Vec<&str> = fields
        .get(&["centers", "centerings"])
        .map(|centers| centers.split_ascii_whitespace().collect())
        .unwrap_or_default();
    // The minimum is the edge of the first voxel, unless the axis is node-centered.
    let origin = |axis: usize| match mins[axis] {
        min if min.is_nan() => 0.0,
        min if centers.get(spatial[axis]) == Some(&"node") => min,
        min => min + spacing[axis] / 2.0,
    };
    let sign = |axis: usize| if spacing[axis] < 0.0 { -1.0 } else { 1.0 };
    Ok(match spatial.len() {
        2 => Geometry::from_plane(&Plane {
            spacing: [spacing[0].abs(), spacing[1].abs()],
            origin: [origin(0), origin(1)],
            direction: [[sign(0), 0.0], [0.0, sign(1)]],
        }),
        _ => Geometry {
            spacing: [spacing[2].abs(), spacing[1].abs(), spacing[0].abs()],
            origin: [origin(0), origin(1), origin(2)],
            direction: [[sign(0), 0.0, 0.0], [0.0, sign(1), 0.0], [0.0, 0.0, sign(2)]],
            ..Geometry::default()
        },
    })
}

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
    fn parses_all_spellings_of_types() {
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
