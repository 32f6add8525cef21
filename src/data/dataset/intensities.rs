//! A sample of intensities and its statistics.

use super::IntensityProperties;
use super::numpy::RandomState;

/// A multiset of intensities: distinct values in ascending order with their counts.
///
/// nnU-Net draws more voxels than most cases have in their foreground, and CT has few distinct values, so this needs
/// much less memory than a list of all draws.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct IntensitySample(Vec<(f32, u64)>);

impl IntensitySample {
    /// Draws `count` values with replacement, as `RandomState.choice(values, count)`; empty if there are no values.
    pub(super) fn draw(values: &[f32], count: usize, random: &mut RandomState) -> Self {
        let Some(last) = values.len().checked_sub(1) else { return Self::default() };
        let last = u32::try_from(last).expect("an image of fewer than 2^32 voxels");
        let mut times = vec![0u32; values.len()];
        for _ in 0..count {
            times[random.interval(last) as usize] += 1;
        }
        let drawn = values.iter().zip(times).filter(|&(_, times)| times > 0);
        Self::from_draws(drawn.map(|(&value, times)| (value, u64::from(times))).collect())
    }

    /// Merges several samples.
    pub(super) fn merge(samples: Vec<Self>) -> Self {
        Self::from_draws(samples.into_iter().flat_map(|sample| sample.0).collect())
    }

    fn from_draws(mut drawn: Vec<(f32, u64)>) -> Self {
        drawn.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
        drawn.dedup_by(|(value, times), (kept, total)| {
            let same = value == kept;
            *total += if same { *times } else { 0 };
            same
        });
        drawn.shrink_to_fit();
        Self(drawn)
    }

    /// Computes the statistics; `None` for an empty sample.
    pub(super) fn properties(&self) -> Option<IntensityProperties> {
        let (&(min, _), &(max, _)) = (self.0.first()?, self.0.last()?);
        let total = self.0.iter().map(|&(_, times)| times).sum::<u64>() as f64;
        let mean_of = |of: &dyn Fn(f64) -> f64| {
            self.0.iter().map(|&(value, times)| of(f64::from(value)) * times as f64).sum::<f64>() / total
        };
        let mean = mean_of(&|value| value);
        Some(IntensityProperties {
            max: f64::from(max),
            mean,
            median: self.quantile(0.5),
            min: f64::from(min),
            percentile_00_5: self.quantile(0.005),
            percentile_99_5: self.quantile(0.995),
            std: mean_of(&|value| (value - mean).powi(2)).sqrt(),
        })
    }

    /// Interpolates linearly between the draws around rank `q (n - 1)` (`numpy.percentile`, method `linear`).
    fn quantile(&self, q: f64) -> f64 {
        let total: u64 = self.0.iter().map(|&(_, times)| times).sum();
        let rank = q * (total - 1) as f64;
        let below = self.at(rank.floor() as u64);
        let above = self.at(rank.ceil() as u64);
        below + (above - below) * rank.fract()
    }

    /// Returns the draw at position `rank` in ascending order, from 0.
    fn at(&self, rank: u64) -> f64 {
        let mut seen = 0;
        let reaches = |&&(_, times): &&(f32, u64)| {
            seen += times;
            seen > rank
        };
        self.0.iter().find(reaches).map_or(f64::NAN, |&(value, _)| f64::from(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference from numpy 2.4: `a = RandomState(1234).choice(array([4, -1, 2.5, 4, 10], float32), 1000)`.
    #[test]
    fn sample_and_statistics_are_numpys() {
        let mut random = RandomState::new(1234);
        let sample = IntensitySample::draw(&[4.0, -1.0, 2.5, 4.0, 10.0], 1000, &mut random);
        assert_eq!(sample.0, [(-1.0, 223), (2.5, 204), (4.0, 391), (10.0, 182)]);
        let found = sample.properties().unwrap();
        assert_eq!((found.min, found.median, found.max), (-1.0, 4.0, 10.0));
        assert!((found.mean - 3.671).abs() < 1e-12 && (found.std - 3.532387153186921).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn percentiles_are_interpolated() {
        let sample = IntensitySample::merge(vec![
            IntensitySample(vec![(0.0, 1), (10.0, 1)]),
            IntensitySample(vec![(0.0, 2), (20.0, 1)]),
        ]);
        assert_eq!(sample.0, [(0.0, 3), (10.0, 1), (20.0, 1)]);
        // numpy.percentile([0, 0, 0, 10, 20], ...)
        for (q, expected) in [(0.5, 0.0), (0.625, 5.0), (0.8, 12.0), (0.995, 19.8)] {
            assert!((sample.quantile(q) - expected).abs() < 1e-12, "{q}: {}", sample.quantile(q));
        }
        assert_eq!(IntensitySample::draw(&[], 5, &mut RandomState::new(0)).properties(), None);
    }
}
