//! `dataset_fingerprint.json` in nnU-Net v2's schema, and the intensity sample it is computed from.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use ndarray::{Array3, Axis, Zip, s};
use nnunet_image as image;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::numpy::RandomState;
use super::{Case, CaseFiles, Dataset, DatasetError};

/// Number of foreground voxels sampled per channel, over all cases (nnU-Net v2, `fingerprint_extractor.py`).
const FOREGROUND_SAMPLES: usize = 100_000_000;
/// Random seed of the sample in every case.
const SEED: u32 = 1234;

/// Dataset statistics used by the planner (`dataset_fingerprint_extractor.py`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Foreground intensity statistics by channel index (as text).
    pub foreground_intensity_properties_per_channel: IndexMap<String, IntensityProperties>,
    /// Median over cases of (voxels after cropping) / (voxels before).
    pub median_relative_size_after_cropping: f64,
    /// Shape of each case after cropping to nonzero, `(z, y, x)`.
    pub shapes_after_crop: Vec<Vec<usize>>,
    /// Spacing of each case in mm, `(z, y, x)`.
    pub spacings: Vec<Vec<f64>>,
    /// Orientations of the images, such as `LPS`, sorted; not in nnU-Net's files.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub orientations: BTreeSet<String>,
}

/// Intensity statistics of the foreground of one channel over the whole dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntensityProperties {
    pub max: f64,
    pub mean: f64,
    pub median: f64,
    pub min: f64,
    pub percentile_00_5: f64,
    pub percentile_99_5: f64,
    pub std: f64,
}

/// Reads all cases, one per thread at a time, and computes the statistics used by the planner.
///
/// The intensity statistics use the same sample as nnU-Net: the same number of foreground voxels from each case, 10^8
/// per channel over all cases, drawn with replacement with the same random numbers in the same order. They differ from
/// nnU-Net's by rounding only: numpy sums in `f32`, this implementation in `f64`.
///
/// # Errors
/// Returns an error if a case cannot be read, has no label map, has a label map of another shape, or has NaN in its
/// foreground, or if the dataset has no foreground.
pub fn extract_fingerprint(dataset: &Dataset) -> Result<Fingerprint, DatasetError> {
    let channels = dataset.json.num_channels();
    let samples_per_case = FOREGROUND_SAMPLES / dataset.cases.len().max(1);
    let cases: Vec<CaseFingerprint> = dataset
        .cases
        .par_iter()
        .map(|files| CaseFingerprint::extract(files, channels, samples_per_case))
        .collect::<Result<_, _>>()?;

    let mut per_channel: Vec<Vec<IntensitySample>> = vec![Vec::new(); channels];
    let (mut shapes, mut spacings, mut relative_sizes) = (Vec::new(), Vec::new(), Vec::new());
    let mut orientations = BTreeSet::new();
    for case in cases {
        orientations.insert(case.orientation);
        shapes.push(case.shape_after_crop.to_vec());
        spacings.push(case.spacing.to_vec());
        relative_sizes.push(case.relative_size);
        per_channel.iter_mut().zip(case.intensities).for_each(|(all, one)| all.push(one));
    }
    let properties = |(channel, samples)| match IntensitySample::merge(samples).properties() {
        Some(properties) => Ok((usize::to_string(&channel), properties)),
        None => Err(DatasetError::invalid(&dataset.root, "no label map of the dataset contains foreground voxels")),
    };
    Ok(Fingerprint {
        foreground_intensity_properties_per_channel: per_channel
            .into_iter()
            .enumerate()
            .map(properties)
            .collect::<Result<_, _>>()?,
        median_relative_size_after_cropping: median(relative_sizes),
        shapes_after_crop: shapes,
        spacings,
        orientations,
    })
}

/// Contribution of one case to the fingerprint.
struct CaseFingerprint {
    shape_after_crop: [usize; 3],
    spacing: [f64; 3],
    orientation: String,
    /// (voxels after cropping) / (voxels before).
    relative_size: f64,
    /// One sample per channel.
    intensities: Vec<IntensitySample>,
}

impl CaseFingerprint {
    fn extract(files: &CaseFiles, channels: usize, samples: usize) -> Result<Self, DatasetError> {
        let Case { image, label, .. } = files.load(channels)?;
        let first = files.images.first().map_or(std::path::Path::new(&files.id), |path| path);
        let Some(label) = label else { return Err(DatasetError::invalid(first, "has no label map")) };
        let shape = &image.data.shape()[1..];
        if label.data.shape() != shape {
            let defect = format!("shape {shape:?} differs from {:?} of its label map", label.data.shape());
            return Err(DatasetError::invalid(first, defect));
        }

        let [z, y, x] = nonzero_bounds(&image.data).map(|[begin, end]| begin..end);
        let shape_after_crop = [z.len(), y.len(), x.len()];
        let data = image.data.slice(s![.., z.clone(), y.clone(), x.clone()]);
        let labels = label.data.slice(s![z, y, x]);

        // The channels of a case share one random stream, one after the other.
        let mut random = RandomState::new(SEED);
        let mut intensities = Vec::with_capacity(channels);
        for channel in data.axis_iter(Axis(0)) {
            let inside = channel.iter().zip(&labels).filter(|&(_, &label)| label > 0);
            let foreground: Vec<f32> = inside.map(|(&intensity, _)| intensity).collect();
            if foreground.iter().any(|intensity| intensity.is_nan()) {
                return Err(DatasetError::invalid(first, "the foreground of the case contains NaN"));
            }
            intensities.push(IntensitySample::draw(&foreground, samples, &mut random));
        }
        let voxels = |shape: &[usize]| shape.iter().product::<usize>() as f64;
        Ok(Self {
            shape_after_crop,
            spacing: image.geometry.spacing,
            orientation: image.geometry.orientation(),
            relative_size: voxels(&shape_after_crop) / voxels(shape),
            intensities,
        })
    }
}

/// Returns the bounding box of all voxels that are nonzero in at least one channel. nnU-Net first fills holes in this
/// mask, which does not change the box.
fn nonzero_bounds(image: &ndarray::Array4<f32>) -> [[usize; 2]; 3] {
    let (_, z, y, x) = image.dim();
    let mut nonzero = Array3::from_elem((z, y, x), false);
    for channel in image.axis_iter(Axis(0)) {
        Zip::from(&mut nonzero).and(&channel).for_each(|nonzero, &intensity| *nonzero |= intensity != 0.0);
    }
    image::bounding_box(&nonzero)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

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
    fn sample_and_statistics_match_numpy() {
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
