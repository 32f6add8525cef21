//! Intensity statistics.

use rayon::prelude::*;
use serde::Serialize;

/// Number of histogram bins.
const BARS: usize = 16;
/// Length of the longest bar in characters.
const WIDTH: usize = 50;

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

impl Intensities {
    /// Computes the statistics; `None` if no intensity is finite.
    pub fn of(intensities: impl Iterator<Item = f32>) -> Option<Self> {
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
            histogram: Histogram::of(&values, low, high),
        })
    }

    /// Intensities displayed as black and white.
    pub fn window(&self) -> [f32; 2] {
        [self.percentile_00_5 as f32, self.percentile_99_5 as f32]
    }
}

impl Histogram {
    fn of(values: &[f32], low: f64, high: f64) -> Self {
        let mut counts = vec![0; BARS];
        let width = if high > low { (high - low) / BARS as f64 } else { 1.0 };
        for value in values {
            let bar = ((f64::from(*value) - low) / width).max(0.0) as usize;
            counts[bar.min(BARS - 1)] += 1;
        }
        Self { low, high: low + width * BARS as f64, counts }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_numpys() {
        // Expected values from numpy.percentile(numpy.arange(101.0) ** 2, [0.5, 50, 99.5]) etc.
        let squares = (0..101).map(|number| (number * number) as f32).chain([f32::NAN, f32::INFINITY]);
        let found = Intensities::of(squares).unwrap();
        assert_eq!((found.voxels, found.not_finite), (103, 2));
        assert_eq!((found.min, found.max), (0.0, 10000.0));
        assert_eq!([found.percentile_00_5, found.median, found.percentile_99_5], [0.5, 2500.0, 9900.5]);
        assert!((found.mean - 3350.0).abs() < 1e-9 && (found.std - 3012.9437).abs() < 1e-3, "{found:?}");
        assert_eq!(found.histogram.counts.iter().sum::<u64>(), 101);
        assert_eq!(found.histogram.lines().len(), BARS);
        assert!(Intensities::of([f32::NAN].into_iter()).is_none());
        assert_eq!(Intensities::of([3.0; 4].into_iter()).unwrap().histogram.counts[0], 4);
    }
}
