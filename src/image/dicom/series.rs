//! Groups slices into series and sorts them into a stack.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Array4;
use rayon::prelude::*;

use super::slice::{SeriesFile, Slice, is_dicom};
use crate::reader_writer::ImageHeader;
use crate::{Geometry, ImageError, Volume};

/// Maximum deviation of a slice from its expected position, as a fraction of the slice distance: positions in files are
/// rounded.
const MAX_OFFSET: f64 = 0.1;
/// Maximum tangent of the angle between the stack and the slice normal: about half a degree.
const MAX_TILT: f64 = 0.01;
/// Maximum difference of direction cosines and pixel sizes within a series.
const TOLERANCE: f64 = 1e-4;
/// Maximum number of missing slices, or of series, that an error lists.
const LISTED: usize = 10;

/// A stack of slices in ascending order along their normal.
pub struct Series {
    slices: Vec<Slice>,
    geometry: Geometry,
}

impl Series {
    /// Reads everything but the pixels of series `uid` in `folder`, or of its only series if `uid` is `None`.
    pub fn find(folder: &Path, uid: Option<&str>) -> Result<Self, ImageError> {
        let fail = |defect: String| ImageError::new(folder, defect);
        let paths: Vec<PathBuf> = files(folder)?.into_iter().filter(|path| is_dicom(path)).collect();
        let found = paths.par_iter().map(|path| SeriesFile::read(path)).collect::<Result<Vec<_>, _>>()?;
        let mut by_series: BTreeMap<String, Vec<SeriesFile>> = BTreeMap::new();
        for file in found.into_iter().flatten() {
            by_series.entry(file.series.clone()).or_default().push(file);
        }
        let chosen = match uid {
            Some(uid) => {
                let known = list(&by_series);
                let chosen = by_series.remove(uid);
                chosen.ok_or_else(|| fail(format!("has no series {uid}; available: {known}")))?
            }
            None if by_series.len() > 1 => {
                let list = list(&by_series);
                return Err(fail(format!("has {} series, select one with --series: {list}", by_series.len())));
            }
            None => by_series.into_values().next().ok_or_else(|| fail("has no DICOM image".into()))?,
        };
        let slices = chosen.into_iter().map(|file| file.slice).collect::<Result<Vec<_>, _>>()?;
        Self::new(folder, slices)
    }

    pub fn header(&self) -> Result<ImageHeader, ImageError> {
        let [y, x] = self.slices[0].extents;
        let scalar_type = self.slices[0].scalar_type();
        Ok(ImageHeader { shape: [1, self.slices.len(), y, x], scalar_type, geometry: self.geometry.clone() })
    }

    pub fn read(&self) -> Result<Volume, ImageError> {
        let [y, x] = self.slices[0].extents;
        // Each file is at least as long as its pixels, so this allocation is bounded by the files' size up to the
        // factor of the element type.
        let mut data = Array4::zeros((1, self.slices.len(), y, x));
        let planes = data.as_slice_mut().expect("standard layout").par_chunks_exact_mut(y * x);
        planes.zip(&self.slices).try_for_each(|(plane, slice)| slice.read(plane))?;
        Ok(Volume { data, geometry: self.geometry.clone() })
    }

    /// Sorts slices into a stack and checks that they are one.
    fn new(folder: &Path, mut slices: Vec<Slice>) -> Result<Self, ImageError> {
        let first = &slices[0];
        let normal = unit(cross(first.x, first.y)).filter(|_| dot(first.x, first.y).abs() < 1e-3);
        let Some(normal) = normal else {
            return Err(ImageError::new(&first.path, "ImageOrientationPatient is not two perpendicular directions"));
        };
        if let Some(defect) = slices.iter().find_map(|slice| differs(slice, first).map(|what| (&slice.path, what))) {
            let (path, what) = defect;
            return Err(ImageError::new(path, format!("{what} differs from that of {}", first.path.display())));
        }
        slices.sort_by(|a, b| dot(a.position, normal).total_cmp(&dot(b.position, normal)));
        let positions: Vec<f64> = slices.iter().map(|slice| dot(slice.position, normal)).collect();
        let gap = check_positions(&slices, &positions).map_err(|defect| ImageError::new(folder, defect))?;
        let (first, last) = (&slices[0], &slices[slices.len() - 1]);
        let way: [f64; 3] = std::array::from_fn(|i| last.position[i] - first.position[i]);
        let along = dot(way, normal);
        let aside = (dot(way, way) - along * along).max(0.0).sqrt();
        if aside > MAX_TILT * along && aside > MAX_OFFSET * gap {
            let degrees = (aside / along).atan().to_degrees();
            let defect = format!("has a gantry tilt of {degrees:.1} degrees; correct it with `dcm2niix`");
            return Err(ImageError::new(folder, defect));
        }
        let geometry = Geometry {
            spacing: [gap, first.spacing[0], first.spacing[1]],
            origin: first.position,
            direction: std::array::from_fn(|row| [first.x[row], first.y[row], normal[row]]),
            ..Geometry::default()
        };
        match geometry.invalid_value() {
            Some(defect) => Err(ImageError::new(&first.path, format!("states {defect}"))),
            None => Ok(Self { slices, geometry }),
        }
    }
}

/// Distance between slices in mm; `positions` are the ascending positions along the normal.
fn check_positions(slices: &[Slice], positions: &[f64]) -> Result<f64, String> {
    let name = |index: usize| slices[index].path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut gaps: Vec<f64> = positions.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let Some(last) = gaps.len().checked_sub(1) else { return Ok(slices[0].thickness.unwrap_or(1.0)) };
    if let Some(index) = gaps.iter().position(|gap| *gap < 1e-4) {
        let (first, second) = (name(index), name(index + 1));
        return Err(format!("{first} and {second} have the same position: several images of one slice"));
    }
    let mean = (positions[last + 1] - positions[0]) / (last + 1) as f64;
    let is_off =
        |(index, position): (usize, &f64)| (position - positions[0] - mean * index as f64).abs() > MAX_OFFSET * mean;
    if !positions.iter().enumerate().any(is_off) {
        return Ok(mean);
    }
    let by_position = gaps.clone();
    let (_, median, _) = gaps.select_nth_unstable_by(last / 2, f64::total_cmp);
    let median = *median;
    let mut holes = Vec::new();
    for (index, gap) in by_position.iter().enumerate() {
        let steps = (gap / median).round();
        if (gap - steps * median).abs() > MAX_OFFSET * median || steps < 1.0 {
            let (first, second) = (name(index), name(index + 1));
            return Err(format!(
                "slices are not equidistant: {gap:.3} mm from {first} to {second}, median {median:.3} mm"
            ));
        }
        if steps > 1.0 {
            let (first, second) = (name(index), name(index + 1));
            holes.push(format!("{} between {first} and {second} ({:.2} mm)", steps - 1.0, positions[index]));
        }
    }
    match holes.is_empty() {
        // The total deviation is accumulated rounding; each single distance is within tolerance.
        true => Ok(mean),
        false => Err(format!("slices are missing: {}", shortened(&holes))),
    }
}

/// The non-hidden files of a folder, sorted by name; or the file itself.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let fail = |error: std::io::Error| ImageError::new(path, error);
    let entries = std::fs::read_dir(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let mut files: Vec<_> = entries
        .into_iter()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

/// The first attribute in which two slices of a series differ but must agree.
fn differs(slice: &Slice, first: &Slice) -> Option<&'static str> {
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > TOLERANCE * b.abs().max(1.0));
    match () {
        () if slice.extents != first.extents => Some("the number of rows or columns"),
        () if far(&slice.spacing, &first.spacing) => Some("PixelSpacing"),
        () if far(&slice.x, &first.x) || far(&slice.y, &first.y) => Some("ImageOrientationPatient"),
        () => None,
    }
}

/// One entry per series with the attributes that distinguish it.
fn list(by_series: &BTreeMap<String, Vec<SeriesFile>>) -> String {
    let line = |(uid, files): (&String, &Vec<SeriesFile>)| {
        let SeriesFile { modality, description, path, .. } = &files[0];
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("{uid} ({modality} {description:?}, {} files, {name} ...)", files.len())
    };
    shortened(&by_series.iter().map(line).collect::<Vec<_>>())
}

fn shortened(lines: &[String]) -> String {
    let more = if lines.len() > LISTED { ", ..." } else { "" };
    lines.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ") + more
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn unit(vector: [f64; 3]) -> Option<[f64; 3]> {
    let length = dot(vector, vector).sqrt();
    (length > 0.5).then(|| vector.map(|component| component / length))
}
