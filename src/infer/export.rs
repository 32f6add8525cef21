//! The way back: from logits of a preprocessed case to a label map of the raw image.

use ndarray::{Array3, Array4, ArrayView4, Axis, Zip, s};

use crate::dataset::DatasetJson;
use crate::image::{LabelMap, Resampling, resample_data};
use crate::store::CaseProperties;

/// What was found in an image, in its own geometry.
#[derive(Clone, Debug)]
pub struct Segmentation {
    pub labels: LabelMap,
    /// Per class or region, `(class, z, y, x)`, if asked for.
    pub probabilities: Option<Array4<f32>>,
}

/// Resamples logits `(class, z, y, x)` to the raw image's voxels, decides on labels, and undoes cropping and
/// transposition (nnU-Net v2, `export_prediction.py`).
///
/// Without probabilities only one class is in memory at a time.
pub fn to_raw(
    logits: ArrayView4<f32>,
    properties: &CaseProperties,
    resampling: &Resampling,
    dataset: &DatasetJson,
    with_probabilities: bool,
) -> Segmentation {
    let regions = if dataset.has_regions() { dataset.regions_class_order.clone() } else { None };
    let (labels, probabilities) = match with_probabilities {
        false => (decide(logits, properties, resampling, regions.as_deref()), None),
        true => {
            // Of logits that have the raw image's voxels already, `decide` resamples nothing.
            let resampled = resample(logits, properties, resampling);
            let labels = decide(resampled.view(), properties, resampling, regions.as_deref());
            (labels, Some(to_probabilities(resampled, regions.is_some())))
        }
    };
    let geometry = properties.geometry.clone();
    Segmentation {
        labels: LabelMap { data: properties.restore(labels.view(), 0), geometry },
        probabilities: probabilities.map(|cropped| restore_probabilities(&cropped, properties, regions.is_some())),
    }
}

fn resample(logits: ArrayView4<f32>, properties: &CaseProperties, resampling: &Resampling) -> Array4<f32> {
    resample_data(
        logits,
        properties.shape_after_cropping_and_before_resampling,
        properties.spacing_after_resampling,
        properties.spacing_before_resampling(),
        resampling,
    )
}

/// The label of each voxel: the class of the largest logit, or the last region of a positive one.
fn decide(
    logits: ArrayView4<f32>,
    properties: &CaseProperties,
    resampling: &Resampling,
    regions: Option<&[i16]>,
) -> Array3<i16> {
    let [z, y, x] = properties.shape_after_cropping_and_before_resampling;
    let mut labels = Array3::<i16>::zeros((z, y, x));
    // The first class is the background, which is what a voxel is until another class exceeds it.
    let start = if regions.is_some() { 0.0 } else { f32::NEG_INFINITY };
    let mut largest = Array3::from_elem((z, y, x), start);
    for class in 0..logits.len_of(Axis(0)) {
        let one = resample(logits.slice(s![class..class + 1, .., .., ..]), properties, resampling);
        let one = one.index_axis(Axis(0), 0);
        let voxels = Zip::from(&mut labels).and(&mut largest).and(&one);
        match regions {
            // Later regions lie inside earlier ones.
            Some(order) => voxels.par_for_each(|label, _, logit| {
                if *logit > 0.0 {
                    *label = order[class];
                }
            }),
            None => voxels.par_for_each(|label, largest, logit| {
                if *logit > *largest {
                    (*label, *largest) = (class as i16, *logit);
                }
            }),
        }
    }
    labels
}

/// Softmax over classes, or the sigmoid of each region.
fn to_probabilities(mut logits: Array4<f32>, are_regions: bool) -> Array4<f32> {
    if are_regions {
        logits.par_mapv_inplace(|logit| 1.0 / (1.0 + (-logit).exp()));
        return logits;
    }
    Zip::from(logits.lanes_mut(Axis(0))).par_for_each(|mut classes| {
        let largest = classes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        classes.mapv_inplace(|logit| (logit - largest).exp());
        let sum = classes.sum();
        classes.mapv_inplace(|value| value / sum);
    });
    logits
}

/// Outside the cropped part everything is background.
fn restore_probabilities(cropped: &Array4<f32>, properties: &CaseProperties, are_regions: bool) -> Array4<f32> {
    let [z, y, x] = properties.raw_shape();
    let mut raw = Array4::zeros((cropped.len_of(Axis(0)), z, y, x));
    for (class, (mut raw, cropped)) in raw.outer_iter_mut().zip(cropped.outer_iter()).enumerate() {
        let outside = if class == 0 && !are_regions { 1.0 } else { 0.0 };
        raw.assign(&properties.restore(cropped, outside));
    }
    raw
}
