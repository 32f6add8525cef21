//! Preview of the network's prediction on a validation patch.

use burn::tensor::Tensor;
use ndarray::{Array2, Array4, Axis};

use super::batch::Targets;
use crate::telemetry::PictureRecord;
use nnunet_infer::LabelRule;
use nnunet_nn::loss::{SegmentationLoss, Target};
use nnunet_nn::ops::NnOps;
use nnunet_viz::inspect::side_by_side;

/// A slice `(y, x)` of a validation patch with its labels and prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationPreview {
    /// First image channel.
    pub image: Array2<f32>,
    /// Classes, or region numbers from 1; for overlapping regions the last one.
    pub truth: Array2<i16>,
    pub prediction: Array2<i16>,
}

impl ValidationPreview {
    /// Selects the slice across z with the most foreground in a batch; without foreground, the middle slice of the
    /// first sample.
    ///
    /// Images and logits are `(n, z, y, x, c)`; only the selected slice is copied to the host.
    pub fn from_batch<B: NnOps>(
        images: &Tensor<B, 5>,
        logits: &Tensor<B, 5>,
        targets: &Targets<B>,
        loss: &SegmentationLoss,
    ) -> Option<Self> {
        let labels = first_labels(targets)?;
        let at = fullest_slice(&labels, loss);
        let [_, _, rows, columns, channels] = logits.dims();
        let slice = |tensor: &Tensor<B, 5>, channels: usize| {
            let part = [at[0]..at[0] + 1, at[1]..at[1] + 1, 0..rows, 0..columns, 0..channels];
            tensor.clone().slice(part).into_data().convert::<f32>().into_vec::<f32>().ok()
        };
        let (image, logits) = (slice(images, 1)?, slice(logits, channels)?);
        let decision = decision(&loss.target);
        let prediction = logits.chunks_exact(channels).map(|logits| decision.label(logits)).collect();
        let truth = labels.index_axis(Axis(0), at[0]);
        Some(Self {
            image: Array2::from_shape_vec((rows, columns), image).ok()?,
            truth: truth.index_axis(Axis(0), at[1]).mapv(|label| display_label(loss, label)),
            prediction: Array2::from_shape_vec((rows, columns), prediction).ok()?,
        })
    }

    /// Returns whether the slice contains foreground.
    pub fn has_foreground(&self) -> bool {
        self.truth.iter().any(|label| *label > 0)
    }

    /// Renders an image for an epoch with truth and prediction side by side.
    ///
    /// # Errors
    /// Returns an error if the PNG encoder fails.
    pub fn render(&self, epoch: usize) -> Result<PictureRecord, String> {
        let labels = [("truth", self.truth.view()), ("prediction", self.prediction.view())];
        let (png, size) = side_by_side(self.image.view(), &labels).map_err(|error| error.to_string())?;
        Ok(PictureRecord { epoch, name: "validation", png, size })
    }
}

/// Returns the labels at the highest resolution, `(n, z, y, x)`.
fn first_labels<B: NnOps>(targets: &Targets<B>) -> Option<Array4<i16>> {
    match targets {
        Targets::Host(targets) => targets.first().cloned(),
        Targets::Device(targets) => {
            let first = targets.first()?;
            let [n, z, y, x] = first.dims();
            let labels = first.clone().into_data().convert::<i32>().into_vec::<i32>().ok()?;
            Array4::from_shape_vec((n, z, y, x), labels.into_iter().map(|label| label as i16).collect()).ok()
        }
    }
}

/// Returns sample and z of the slice with the most foreground.
fn fullest_slice(labels: &Array4<i16>, loss: &SegmentationLoss) -> [usize; 2] {
    let area = |[n, z]: [usize; 2]| {
        let slice = labels.index_axis(Axis(0), n);
        let slice = slice.index_axis(Axis(0), z);
        slice.iter().filter(|label| display_label(loss, **label) > 0).count()
    };
    let (samples, slices) = (labels.len_of(Axis(0)), labels.len_of(Axis(1)));
    let all = (0..samples).flat_map(|n| (0..slices).map(move |z| [n, z]));
    // `max_by_key` returns the last of equal elements; reversed, this is the first.
    let fullest = all.rev().max_by_key(|at| area(*at));
    fullest.filter(|at| area(*at) > 0).unwrap_or([0, slices / 2])
}

/// Returns the displayed number of a label; 0 is background or ignored.
fn display_label(loss: &SegmentationLoss, label: i16) -> i16 {
    match &loss.target {
        _ if loss.ignore_label == Some(label) => 0,
        Target::Classes => label,
        Target::Regions(regions) => {
            regions.iter().rposition(|members| members.contains(&label)).map_or(0, |region| region as i16 + 1)
        }
    }
}

/// Returns the decision rule that yields these numbers from logits.
fn decision(target: &Target) -> LabelRule {
    match target {
        Target::Classes => LabelRule::Classes,
        Target::Regions(regions) => LabelRule::Regions((1..=regions.len() as i16).collect()),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;

    /// Returns the preview of images `(2, 3, 2, 2, 1)` whose values are voxel numbers, and logits with two channels.
    fn preview_of(
        loss: &SegmentationLoss,
        labels: Array4<i16>,
        logits: impl Fn(usize) -> [f32; 2],
    ) -> ValidationPreview {
        let voxels = 2 * 3 * 2 * 2;
        let device = Default::default();
        let images: Vec<f32> = (0..voxels).map(|voxel| voxel as f32).collect();
        let images = Tensor::<Flex, 5>::from_data(TensorData::new(images, [2, 3, 2, 2, 1]), &device);
        let logits: Vec<f32> = (0..voxels).flat_map(logits).collect();
        let logits = Tensor::from_data(TensorData::new(logits, [2, 3, 2, 2, 2]), &device);
        ValidationPreview::from_batch(&images, &logits, &Targets::Host(vec![labels]), loss).unwrap()
    }

    #[test]
    fn the_fullest_slice_is_seen_of_what_is_annotated() {
        let loss = SegmentationLoss::new(Target::Classes, true, Some(2));
        let mut labels = Array4::zeros((2, 3, 2, 2));
        labels[[0, 0, 0, 0]] = 1;
        labels.slice_mut(ndarray::s![1, 2, 0, ..]).fill(1);
        labels.slice_mut(ndarray::s![0, 1, .., ..]).fill(2);
        let preview = preview_of(&loss, labels, |voxel| [0.5, (voxel % 2) as f32]);
        assert_eq!(preview.image, ndarray::arr2(&[[20.0, 21.0], [22.0, 23.0]]));
        assert_eq!(preview.truth, ndarray::arr2(&[[1, 1], [0, 0]]));
        assert_eq!(preview.prediction, ndarray::arr2(&[[0, 1], [0, 1]]));
        assert!(preview.has_foreground());
    }

    #[test]
    fn without_foreground_it_is_the_middle_and_of_regions_the_last_counts() {
        let loss = SegmentationLoss::new(Target::Regions(vec![vec![1, 2], vec![2]]), true, None);
        let mut labels = Array4::zeros((2, 3, 2, 2));
        let nothing = preview_of(&loss, labels.clone(), |_| [-1.0, -1.0]);
        assert_eq!((nothing.image[[0, 0]], nothing.has_foreground(), nothing.prediction.sum()), (4.0, false, 0));
        labels[[0, 1, 0, 0]] = 1;
        labels[[0, 1, 0, 1]] = 2;
        let preview = preview_of(&loss, labels, |voxel| [1.0, if voxel == 5 { 1.0 } else { -1.0 }]);
        assert_eq!(preview.truth, ndarray::arr2(&[[1, 2], [0, 0]]));
        assert_eq!(preview.prediction, ndarray::arr2(&[[1, 2], [1, 1]]));
    }
}
