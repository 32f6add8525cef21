//! `dataset_fingerprint.json` in nnU-Net v2's schema.

use indexmap::IndexMap;
use ndarray::{Array3, Axis, Zip, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::intensities::IntensitySample;
use super::numpy::RandomState;
use super::{Case, CaseFiles, Dataset, DatasetError};
use nnunet_image as image;

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
    for case in cases {
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
    })
}

/// Contribution of one case to the fingerprint.
struct CaseFingerprint {
    shape_after_crop: [usize; 3],
    spacing: [f64; 3],
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
