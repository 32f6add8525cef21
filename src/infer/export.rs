//! Conversion of the logits of a preprocessed case to a label map of the raw image.

use ndarray::{Array3, Array4, ArrayView3, ArrayViewMut1, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::argmax::LabelRule;
use super::interpolation::LinearSample;
use super::sliding_window::InferenceTimings;
use nnunet_data::store::CaseProperties;
use nnunet_image::{LabelMap, Resampling};

/// Segmentation of an image, in its own geometry.
#[derive(Clone, Debug)]
pub struct Segmentation {
    pub labels: LabelMap,
    /// Probabilities per class or region, `(class, z, y, x)`, if requested.
    pub probabilities: Option<Array4<f32>>,
    /// Time spent on each part.
    pub timings: InferenceTimings,
    /// Labels for each later stage of a cascade, `(z, y, x)` in the voxel grid of its own preprocessed case.
    pub for_next_stages: Vec<Array3<i16>>,
}

/// Converts planes of logits, in the order of their arrival, to planes of labels in the raw image's voxel grid (nnU-Net
/// v2, `export_prediction.py`).
///
/// Resampling and argmax are one pass: a label needs the logits of at most two planes, so resampled logits are never
/// stored.
pub struct Export<'a> {
    properties: &'a CaseProperties,
    label_rule: &'a LabelRule,
    /// Interpolation of the new samples along z, y and x.
    samples: [Vec<LinearSample>; 3],
    /// Labels of the cropped image.
    labels: Array3<i16>,
    /// Probabilities of the cropped image, `(class, z, y, x)`.
    probabilities: Option<Array4<f32>>,
    /// Previous plane of logits, if it is still needed.
    before: Array3<f32>,
    /// Number of finished planes of labels.
    done: usize,
}

impl<'a> Export<'a> {
    /// Creates an export for logits of `shape`, `(z, y, x)`, of a case.
    ///
    /// # Panics
    /// If the logits must be resampled and [`Export::can_resample`] is false.
    pub fn new(
        shape: [usize; 3],
        properties: &'a CaseProperties,
        resampling: &Resampling,
        label_rule: &'a LabelRule,
    ) -> Self {
        let to = properties.shape_after_cropping_and_before_resampling;
        Self::between([shape, to], properties.spacing_before_resampling(), properties, resampling, label_rule)
    }

    /// Creates an export to the preprocessed case of another configuration, with `shapes[1]`, instead of the raw image;
    /// finish it with [`Export::into_labels`]. As in nnU-Net (`resample_and_save`), only the spacing of the logits
    /// determines whether an axis is resampled separately.
    ///
    /// # Panics
    /// Like [`Export::new`].
    pub fn for_stage(
        shapes: [[usize; 3]; 2],
        properties: &'a CaseProperties,
        resampling: &Resampling,
        label_rule: &'a LabelRule,
    ) -> Self {
        Self::between(shapes, properties.spacing_after_resampling, properties, resampling, label_rule)
    }

    /// Creates an export from logits of the first shape to labels of the second, with this spacing.
    fn between(
        [shape, to]: [[usize; 3]; 2],
        spacing: [f64; 3],
        properties: &'a CaseProperties,
        resampling: &Resampling,
        label_rule: &'a LabelRule,
    ) -> Self {
        assert!(shape == to || Self::can_resample(resampling), "cubic splines need the whole image");
        let separate = resampling.separate_axis(properties.spacing_after_resampling, spacing);
        let order = |axis| if Some(axis) == separate { resampling.order_z } else { resampling.order };
        Self {
            properties,
            label_rule,
            samples: std::array::from_fn(|axis| LinearSample::along_axis(order(axis), shape[axis], to[axis])),
            labels: Array3::zeros(to),
            probabilities: None,
            before: Array3::zeros([0; 3]),
            done: 0,
        }
    }

    /// Returns whether a new sample depends on at most two neighbors per axis, as in nnU-Net's plans for logits.
    pub fn can_resample(resampling: &Resampling) -> bool {
        resampling.order <= 1 && resampling.order_z <= 1
    }

    /// Enables the output of probabilities for this number of classes.
    pub fn with_probabilities(mut self, classes: usize) -> Self {
        let (z, y, x) = self.labels.dim();
        self.probabilities = Some(Array4::zeros((classes, z, y, x)));
        self
    }

    /// Adds the next plane of logits, `(y, x, class)`, with contiguous rows; `z` counts from 0.
    pub fn plane(&mut self, z: usize, logits: ArrayView3<f32>) {
        while let Some(sample) = self.samples[0].get(self.done).copied().filter(|sample| sample.last() <= z) {
            let before = std::mem::take(&mut self.before);
            let first = if sample.first == z { logits } else { before.view() };
            self.argmax_plane(self.done, [(first, 1.0 - sample.part), (logits, sample.part)]);
            self.before = before;
            self.done += 1;
        }
        if self.samples[0].get(self.done).is_some_and(|sample| sample.first == z) {
            self.before = match std::mem::take(&mut self.before) {
                mut before if before.dim() == logits.dim() => {
                    before
                        .axis_iter_mut(Axis(0))
                        .into_par_iter()
                        .zip(logits.axis_iter(Axis(0)).into_par_iter())
                        .for_each(|(mut before, logits)| before.assign(&logits));
                    before
                }
                _ => logits.to_owned(),
            };
        }
    }

    /// Undoes cropping and transposition and returns the segmentation.
    ///
    /// # Panics
    /// If planes are missing.
    pub fn finish(self, timings: InferenceTimings) -> Segmentation {
        let Self { properties, label_rule, labels, probabilities, done, .. } = self;
        assert_eq!(done, labels.len_of(Axis(0)), "planes of logits are missing");
        Segmentation {
            labels: LabelMap { data: properties.restore(labels.view(), 0), geometry: properties.geometry.clone() },
            probabilities: probabilities.map(|cropped| restore_probabilities(&cropped, properties, label_rule)),
            timings,
            for_next_stages: Vec::new(),
        }
    }

    /// Returns the labels without undoing cropping or transposition.
    ///
    /// # Panics
    /// If planes are missing.
    pub fn into_labels(self) -> Array3<i16> {
        assert_eq!(self.done, self.labels.len_of(Axis(0)), "planes of logits are missing");
        self.labels
    }

    /// Computes plane `z` of the labels from two planes of logits and their weights.
    fn argmax_plane(&mut self, z: usize, planes: [(ArrayView3<f32>, f32); 2]) {
        let Self { labels, probabilities, samples: [_, ys, xs], label_rule, .. } = self;
        let classes = planes[0].0.len_of(Axis(2));
        let mut labels = labels.index_axis_mut(Axis(0), z);
        let mut probabilities = probabilities.as_mut().map(|all| all.index_axis_mut(Axis(1), z));
        // Probabilities `(class, x)` of each row.
        let mut probabilities: Vec<Option<ArrayViewMut2<f32>>> = match &mut probabilities {
            Some(plane) => plane.axis_iter_mut(Axis(1)).map(Some).collect(),
            None => ys.iter().map(|_| None).collect(),
        };
        let rows = labels.axis_iter_mut(Axis(0)).into_par_iter().zip(&mut probabilities).zip(ys);
        rows.for_each_init(Scratch::default, |scratch, ((labels, probabilities), y)| {
            let Scratch { row, voxel } = scratch;
            let row = blend_rows(&planes, *y, row);
            argmax_row(row, xs, classes, label_rule, voxel, labels, probabilities.as_mut());
        });
    }
}

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    /// A row of logits, `(x, class)`.
    row: Vec<f32>,
    voxel: Vec<f32>,
}

/// Interpolates a row between two rows of two planes.
fn blend_rows<'r>(planes: &'r [(ArrayView3<f32>, f32); 2], y: LinearSample, blended: &'r mut Vec<f32>) -> &'r [f32] {
    let weighted = planes.iter().flat_map(|(plane, from_plane)| {
        y.pair().map(|(row, of_row)| {
            let row = plane.index_axis(Axis(0), row).to_slice().expect("rows of logits are contiguous");
            (row, from_plane * of_row)
        })
    });
    let mut weighted = weighted.filter(|(_, weight)| *weight > 0.0);
    let (first, weight) = weighted.next().expect("weights add up to 1");
    if weight == 1.0 {
        return first;
    }
    blended.clear();
    blended.extend(first.iter().map(|logit| weight * logit));
    for (row, weight) in weighted {
        blended.iter_mut().zip(row).for_each(|(sum, logit)| *sum += weight * logit);
    }
    blended
}

/// Computes a row of labels, and of probabilities `(class, x)`, from a row of logits `(x, class)`.
fn argmax_row(
    row: &[f32],
    xs: &[LinearSample],
    classes: usize,
    label_rule: &LabelRule,
    voxel: &mut Vec<f32>,
    mut labels: ArrayViewMut1<i16>,
    mut probabilities: Option<&mut ArrayViewMut2<f32>>,
) {
    for (x, (label, sample)) in labels.iter_mut().zip(xs).enumerate() {
        let [(first, of_first), (second, of_second)] =
            sample.pair().map(|(x, weight)| (&row[x * classes..][..classes], weight));
        if sample.part == 0.0 && probabilities.is_none() {
            *label = label_rule.label(first);
            continue;
        }
        voxel.clear();
        voxel.extend(first.iter().zip(second).map(|(first, second)| of_first * first + of_second * second));
        *label = label_rule.label(voxel);
        if let Some(probabilities) = &mut probabilities {
            label_rule.to_probabilities(voxel);
            probabilities.column_mut(x).iter_mut().zip(&*voxel).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Pads cropped probabilities to the raw image; everything outside the crop is background.
fn restore_probabilities(cropped: &Array4<f32>, properties: &CaseProperties, label_rule: &LabelRule) -> Array4<f32> {
    let [z, y, x] = properties.raw_shape();
    let mut raw = Array4::zeros((cropped.len_of(Axis(0)), z, y, x));
    for (class, (mut raw, cropped)) in raw.outer_iter_mut().zip(cropped.outer_iter()).enumerate() {
        let outside = if class == 0 && !label_rule.is_of_regions() { 1.0 } else { 0.0 };
        raw.assign(&properties.restore(cropped, outside));
    }
    raw
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ndarray::s;

    use super::*;
    use nnunet_image::{Geometry, resample_data};

    fn properties(raw: [usize; 3], spacing: [f64; 3], preprocessed: [f64; 3]) -> CaseProperties {
        CaseProperties {
            geometry: Geometry { spacing, ..Geometry::default() },
            transpose_forward: [0, 1, 2],
            shape_before_cropping: raw,
            bbox_used_for_cropping: raw.map(|extent| [0, extent]),
            shape_after_cropping_and_before_resampling: raw,
            shape_after_resampling: [7, 9, 8],
            spacing_after_resampling: preprocessed,
            class_locations: BTreeMap::new(),
        }
    }

    /// Reference: nnU-Net's `resample_and_save` resamples to another stage's shape by the spacing of the logits alone.
    #[test]
    fn labels_for_another_stage_are_those_of_the_resampled_logits() {
        let logit = |c: usize, z: usize, y: usize, x: usize| ((c * 37 + z * 11 + y * 5 + x * 3) as f32 * 0.37).sin();
        let logits = Array4::from_shape_fn((4, 7, 9, 8), |(c, z, y, x)| logit(c, z, y, x));
        let resampling = Resampling { order: 1, order_z: 0, force_separate_z: None };
        for (spacing, to) in [([1.0; 3], [14, 17, 19]), ([5.0, 1.0, 1.0], [13, 18, 16]), ([2.0; 3], [7, 9, 8])] {
            // The raw image is anisotropic, which must have no effect.
            let properties = properties([3, 30, 30], [9.0, 1.0, 1.0], spacing);
            let whole = resample_data(logits.view(), to, spacing, spacing, &resampling);
            let mut export = Export::for_stage([[7, 9, 8], to], &properties, &resampling, &LabelRule::Classes);
            for z in 0..7 {
                let plane = logits.slice(s![.., z, .., ..]).permuted_axes([1, 2, 0]);
                export.plane(z, plane.as_standard_layout().view());
            }
            let labels = export.into_labels();
            assert_eq!(labels.dim(), to.into());
            for ((z, y, x), label) in labels.indexed_iter() {
                assert_eq!(*label, LabelRule::Classes.label(&whole.slice(s![.., z, y, x]).to_vec()), "{to:?}");
            }
        }
    }

    /// Exporting plane by plane gives the same result as resampling the whole volume.
    #[test]
    fn labels_are_those_of_the_resampled_logits() {
        let logits = |c: usize, z: usize, y: usize, x: usize| {
            ((c * 37 + z * 11 + y * 5 + x * 3) as f32 * 0.37).sin() + ((c + 1) as f32 * 0.11 * (x + z) as f32).cos()
        };
        let logits = Array4::from_shape_fn((5, 7, 9, 8), |(c, z, y, x)| logits(c, z, y, x));
        let standard = Resampling { order: 1, order_z: 0, force_separate_z: None };
        for (raw, spacing, preprocessed) in [
            ([7, 9, 8], [1.0; 3], [1.0; 3]),
            ([13, 6, 20], [1.0; 3], [1.0; 3]),
            ([4, 20, 17], [5.0, 1.0, 1.0], [3.0, 2.0, 2.0]),
            ([15, 18, 3], [1.0, 1.0, 6.0], [2.0, 2.0, 2.0]),
            ([1, 1, 1], [1.0; 3], [1.0; 3]),
        ] {
            for resampling in [standard, Resampling { order_z: 1, ..standard }, Resampling { order: 0, ..standard }] {
                let properties = properties(raw, spacing, preprocessed);
                let whole = resample_data(logits.view(), raw, preprocessed, spacing, &resampling);
                for label_rule in [LabelRule::Classes, LabelRule::Regions(vec![4, 2, 5, 1, 3])] {
                    let mut export =
                        Export::new([7, 9, 8], &properties, &resampling, &label_rule).with_probabilities(5);
                    for z in 0..7 {
                        let plane = logits.slice(s![.., z, .., ..]).permuted_axes([1, 2, 0]);
                        export.plane(z, plane.as_standard_layout().view());
                    }
                    let found = export.finish(InferenceTimings::default());
                    for ((z, y, x), label) in found.labels.data.indexed_iter() {
                        let mut voxel = whole.slice(s![.., z, y, x]).to_vec();
                        assert_eq!(*label, label_rule.label(&voxel), "{raw:?} {resampling:?} at {z} {y} {x}");
                        label_rule.to_probabilities(&mut voxel);
                        let probabilities = found.probabilities.as_ref().unwrap().slice(s![.., z, y, x]);
                        let is_near = |(one, other): (&f32, &f32)| (one - other).abs() < 1e-5;
                        assert!(probabilities.iter().zip(&voxel).all(is_near), "{raw:?} {resampling:?}");
                    }
                }
            }
        }
    }
}
