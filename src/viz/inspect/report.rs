//! Report of a case, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Axis};
use serde::Serialize;

use super::Intensities;
use nnunet_image::{ImageHeader, LabelMap, Volume};

/// Report of a case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    pub case: String,
    pub images: Vec<ImageReport>,
    pub labels: Option<LabelReport>,
}

/// Report of an image file.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    pub file: PathBuf,
    /// `(channel, z, y, x)`.
    pub shape: [usize; 4],
    /// Scalar type of the file, by its NumPy name.
    pub number: &'static str,
    /// Voxel size in mm, `(z, y, x)`.
    pub spacing: [f64; 3],
    /// Origin in mm, `(x, y, z)`, LPS.
    pub origin: [f64; 3],
    /// Direction cosines, row-major, LPS; the columns belong to x, y and z.
    pub direction: [[f64; 3]; 3],
    /// Anatomical directions of increasing x, y and z.
    pub orientation: String,
    /// Statistics of each channel.
    pub channels: Vec<Intensities>,
    /// Statistics of each channel over voxels with a label above 0.
    pub foreground: Vec<Intensities>,
}

/// Report of a label map.
#[derive(Clone, Debug, Serialize)]
pub struct LabelReport {
    pub file: PathBuf,
    /// Classes without the background, by label.
    pub classes: Vec<LabelVolume>,
}

/// Volume of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelVolume {
    pub label: i16,
    pub name: String,
    pub voxels: usize,
    pub mm3: f64,
    pub ml: f64,
}

impl ImageReport {
    pub(super) fn of(path: &Path, header: &ImageHeader, volume: &Volume, labels: Option<&Array3<i16>>) -> Self {
        let geometry = &header.geometry;
        let channels = || volume.data.axis_iter(Axis(0));
        let foreground = labels.into_iter().flat_map(|labels| {
            channels().filter_map(move |channel| {
                let inside = channel.iter().zip(labels).filter(|(_, label)| **label > 0);
                Intensities::of(inside.map(|(value, _)| *value))
            })
        });
        Self {
            file: path.to_owned(),
            shape: header.shape,
            number: header.scalar_type.name(),
            spacing: geometry.spacing,
            origin: geometry.origin,
            direction: geometry.direction,
            orientation: geometry.orientation(),
            channels: channels().filter_map(|channel| Intensities::of(channel.iter().copied())).collect(),
            foreground: foreground.collect(),
        }
    }
}

impl LabelReport {
    pub(super) fn of(labels: &Option<(&PathBuf, LabelMap)>, names: &BTreeMap<i16, String>) -> Option<Self> {
        let (path, LabelMap { data, geometry }) = labels.as_ref()?;
        let mut counts: BTreeMap<i16, usize> = names.keys().map(|label| (*label, 0)).collect();
        for row in data.rows() {
            // Labels come in runs.
            for run in row.to_vec().chunk_by(|a, b| a == b) {
                *counts.entry(run[0]).or_default() += run.len();
            }
        }
        counts.remove(&0);
        let voxel: f64 = geometry.spacing.iter().product();
        let class = |(label, voxels): (i16, usize)| LabelVolume {
            label,
            name: names.get(&label).cloned().unwrap_or_else(|| format!("class {label}")),
            voxels,
            mm3: voxels as f64 * voxel,
            ml: voxels as f64 * voxel / 1000.0,
        };
        Some(Self { file: path.to_path_buf(), classes: counts.into_iter().map(class).collect() })
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.case)?;
        for image in &self.images {
            write!(f, "{image}")?;
        }
        let Some(labels) = &self.labels else { return Ok(()) };
        writeln!(f, "  {}", labels.file.display())?;
        for class in &labels.classes {
            let LabelVolume { label, name, voxels, mm3, ml } = class;
            writeln!(f, "    {label:>5} {name:24} {voxels:>10} voxels {mm3:>14.1} mm3 {ml:>10.2} ml")?;
        }
        Ok(())
    }
}

impl fmt::Display for ImageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [c, z, y, x] = self.shape;
        let channels = if c == 1 { String::new() } else { format!(", {c} channels") };
        writeln!(f, "  {}", self.file.display())?;
        writeln!(f, "    shape        {z} x {y} x {x} (z, y, x){channels}, {}", self.number)?;
        writeln!(f, "    spacing      {} mm (z, y, x)", list(&self.spacing, " x "))?;
        writeln!(f, "    origin       {} mm (x, y, z; LPS)", list(&self.origin, ", "))?;
        let rows = self.direction.map(|row| list(&row, " "));
        writeln!(f, "    direction    {}", rows.join(" | "))?;
        writeln!(f, "    orientation  {} (directions of increasing x, y, z)", self.orientation)?;
        for (channel, intensities) in self.channels.iter().enumerate() {
            let of = if c == 1 { String::new() } else { format!(" of channel {channel}") };
            writeln!(f, "    intensities{of}: {}", summary(intensities))?;
            if let Some(foreground) = self.foreground.get(channel) {
                writeln!(f, "    foreground: {}", summary(foreground))?;
            }
            for line in intensities.histogram.lines() {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

fn summary(of: &Intensities) -> String {
    let Intensities { min, max, mean, std, percentile_00_5: low, median, percentile_99_5: high, .. } = of;
    let strange = if of.not_finite > 0 { format!(", {} NaN or infinite", of.not_finite) } else { String::new() };
    format!(
        "{min} to {max}, mean {mean:.2}, std {std:.2}, percentiles 0.5: {low:.2}, 50: {median:.2}, 99.5: {high:.2}{strange}"
    )
}

/// Formats values as `f32`, the precision of most headers: `1.1` instead of `1.100000023841858`, and 0 without a sign.
fn list(values: &[f64], between: &str) -> String {
    values.iter().map(|value| (*value as f32 + 0.0).to_string()).collect::<Vec<_>>().join(between)
}
