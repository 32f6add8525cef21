//! Report of a case, as text and as JSON: header, intensity statistics, volumes of labels.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ndarray::{Array3, Axis};
use rayon::prelude::*;
use serde::Serialize;

use nnunet_image::{ImageHeader, LabelMap, Volume};

/// Number of histogram bins.
const BINS: usize = 16;
/// Length of the longest bar in characters.
const WIDTH: usize = 50;

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
    #[serde(rename = "number")]
    pub scalar_type: &'static str,
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

/// Statistics of the finite intensities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Intensities {
    pub voxels: usize,
    /// Number of NaN and infinite voxels, which are excluded from the statistics.
    pub not_finite: usize,
    pub min: f32,
    pub max: f32,
    pub mean: f64,
    pub std: f64,
    pub percentile_00_5: f64,
    pub median: f64,
    pub percentile_99_5: f64,
    pub histogram: Histogram,
}

/// Histogram with bins of equal width. Values outside of the range count in the first and the last bin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    pub low: f64,
    pub high: f64,
    pub counts: Vec<u64>,
}

impl ImageReport {
    pub(super) fn new(path: &Path, header: &ImageHeader, volume: &Volume, labels: Option<&Array3<i16>>) -> Self {
        let geometry = &header.geometry;
        let channels = || volume.data.axis_iter(Axis(0));
        let foreground = labels.into_iter().flat_map(|labels| {
            channels().filter_map(move |channel| {
                let inside = channel.iter().zip(labels).filter(|(_, label)| **label > 0);
                Intensities::from_values(inside.map(|(value, _)| *value))
            })
        });
        Self {
            file: path.to_owned(),
            shape: header.shape,
            scalar_type: header.scalar_type.name(),
            spacing: geometry.spacing,
            origin: geometry.origin,
            direction: geometry.direction,
            orientation: geometry.orientation(),
            channels: channels().filter_map(|channel| Intensities::from_values(channel.iter().copied())).collect(),
            foreground: foreground.collect(),
        }
    }
}

impl LabelReport {
    pub(super) fn new(labels: &Option<(&PathBuf, LabelMap)>, names: &BTreeMap<i16, String>) -> Option<Self> {
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

impl Intensities {
    /// Computes the statistics; `None` if no intensity is finite.
    pub fn from_values(intensities: impl Iterator<Item = f32>) -> Option<Self> {
        let mut voxels = 0;
        let mut values: Vec<f32> = intensities.inspect(|_| voxels += 1).filter(|value| value.is_finite()).collect();
        let not_finite = voxels - values.len();
        values.par_sort_unstable_by(f32::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len() as f64;
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        let [low, median, high] = [0.005, 0.5, 0.995].map(|part| percentile(&values, part));
        Some(Self {
            voxels,
            not_finite,
            min,
            max,
            mean,
            std: variance.sqrt(),
            percentile_00_5: low,
            median,
            percentile_99_5: high,
            histogram: Histogram::from_sorted(&values, low, high),
        })
    }

    /// Intensities displayed as black and white.
    pub fn window(&self) -> [f32; 2] {
        [self.percentile_00_5 as f32, self.percentile_99_5 as f32]
    }
}

impl Histogram {
    fn from_sorted(values: &[f32], low: f64, high: f64) -> Self {
        let mut counts = vec![0; BINS];
        let width = if high > low { (high - low) / BINS as f64 } else { 1.0 };
        for value in values {
            let bar = ((f64::from(*value) - low) / width).max(0.0) as usize;
            counts[bar.min(BINS - 1)] += 1;
        }
        Self { low, high: low + width * BINS as f64, counts }
    }

    /// One line per bin: its lower bound, a bar, and the percentage of the voxels.
    pub fn lines(&self) -> Vec<String> {
        let most = self.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
        let all = self.counts.iter().sum::<u64>().max(1) as f64;
        let width = (self.high - self.low) / self.counts.len().max(1) as f64;
        let line = |(index, count): (usize, &u64)| {
            let bar = "#".repeat((*count as f64 / most * WIDTH as f64).round() as usize);
            let from = self.low + width * index as f64;
            format!("{from:>10.4} |{bar:WIDTH$}| {:5.1} %", 100.0 * *count as f64 / all)
        };
        self.counts.iter().enumerate().map(line).collect()
    }
}

/// Linear interpolation between the two nearest sorted values, as in `numpy.percentile`.
fn percentile(sorted: &[f32], part: f64) -> f64 {
    let position = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    f64::from(below) + (f64::from(above) - f64::from(below)) * position.fract()
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
        writeln!(f, "    shape        {z} x {y} x {x} (z, y, x){channels}, {}", self.scalar_type)?;
        writeln!(f, "    spacing      {} mm (z, y, x)", list(&self.spacing, " x "))?;
        writeln!(f, "    origin       {} mm (x, y, z; LPS)", list(&self.origin, ", "))?;
        let rows = self.direction.map(|row| list(&row, " "));
        writeln!(f, "    direction    {}", rows.join(" | "))?;
        writeln!(f, "    orientation  {} (directions of increasing x, y, z)", self.orientation)?;
        for (channel, intensities) in self.channels.iter().enumerate() {
            let which = if c == 1 { String::new() } else { format!(" of channel {channel}") };
            writeln!(f, "    intensities{which}: {}", summary(intensities))?;
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

fn summary(intensities: &Intensities) -> String {
    let Intensities { min, max, mean, std, percentile_00_5: low, median, percentile_99_5: high, .. } = intensities;
    let strange = if intensities.not_finite > 0 {
        format!(", {} NaN or infinite", intensities.not_finite)
    } else {
        String::new()
    };
    format!(
        "{min} to {max}, mean {mean:.2}, std {std:.2}, percentiles 0.5: {low:.2}, 50: {median:.2}, 99.5: {high:.2}{strange}"
    )
}

/// Formats values as `f32`, the precision of most headers: `1.1` instead of `1.100000023841858`, and 0 without a sign.
fn list(values: &[f64], between: &str) -> String {
    values.iter().map(|value| (*value as f32 + 0.0).to_string()).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_equal_those_of_numpy() {
        // Expected values from numpy.percentile(numpy.arange(101.0) ** 2, [0.5, 50, 99.5]) etc.
        let squares = (0..101).map(|number| (number * number) as f32).chain([f32::NAN, f32::INFINITY]);
        let found = Intensities::from_values(squares).unwrap();
        assert_eq!((found.voxels, found.not_finite), (103, 2));
        assert_eq!((found.min, found.max), (0.0, 10000.0));
        assert_eq!([found.percentile_00_5, found.median, found.percentile_99_5], [0.5, 2500.0, 9900.5]);
        assert!((found.mean - 3350.0).abs() < 1e-9 && (found.std - 3012.9437).abs() < 1e-3, "{found:?}");
        assert_eq!(found.histogram.counts.iter().sum::<u64>(), 101);
        assert_eq!(found.histogram.lines().len(), BINS);
        assert!(Intensities::from_values([f32::NAN].into_iter()).is_none());
        assert_eq!(Intensities::from_values([3.0; 4].into_iter()).unwrap().histogram.counts[0], 4);
    }
}
