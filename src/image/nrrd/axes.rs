//! Classifies the axes of an NRRD file as spatial or channel and derives the geometry.

use super::fields::Fields;
use crate::Geometry;
use crate::text_header::numbers;
use crate::volume::Plane;

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
        },
    })
}
