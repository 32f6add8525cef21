//! Validation on patches: loss and pseudo Dice of the current weights.

use burn::tensor::{Int, Tensor, ops::FloatTensor};
use ndarray::Array4;
use rayon::prelude::*;

use super::batch::{DeviceBatch, Targets};
use super::device_loss::{DeviceLoss, host_all};
use super::seen::Seen;
use super::sums::reduce_sums;
use nnunet_comm::distributed::{CommError, Communicator, ReduceOp};
use nnunet_nn::loss::{LossSums, SegmentationLoss, Target};
use nnunet_nn::model::UNet;
use nnunet_nn::ops::NnOps;

/// Voxels per parallel task.
const BLOCK: usize = 1 << 14;
/// Number of batches searched for a slice with foreground.
const LOOKED_THROUGH: usize = 8;

/// Accumulator of loss and pseudo Dice over the validation batches of one epoch and all ranks.
///
/// The pseudo Dice of a class is computed once from all voxels of all batches, as in nnU-Net; "pseudo" because it is
/// based on patches, not cases.
pub struct Validation<'a, B: NnOps> {
    network: &'a UNet<B>,
    loss: &'a SegmentationLoss,
    /// Weights of the computed heads.
    head_weights: Vec<f64>,
    /// `None` if the host counts.
    device_loss: Option<DeviceLoss<B>>,
    batches: usize,
    loss_sum: f64,
    /// Per foreground class or region: true positives, false positives, false negatives.
    confusion: Vec<[f64; 3]>,
    /// Sums queued on the device.
    queued: Vec<Queued<B>>,
    /// Whether to create a preview.
    is_watched: bool,
    seen: Option<Seen>,
}

/// Sums of one batch on the device.
struct Queued<B: NnOps> {
    /// Loss sums of each head.
    losses: Vec<FloatTensor<B>>,
    counts: FloatTensor<B>,
}

/// Result of a [`Validation`].
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationResult {
    /// Mean deep-supervision loss.
    pub loss: f64,
    /// Pseudo Dice per foreground class or region; `None` for one that occurs neither in labels nor in predictions.
    pub pseudo_dice: Vec<Option<f64>>,
    /// Preview of one of this rank's patches, if enabled.
    pub seen: Option<Seen>,
}

impl<'a, B: NnOps> Validation<'a, B> {
    /// Creates an empty accumulator.
    pub fn new(network: &'a UNet<B>, loss: &'a SegmentationLoss, head_weights: &[f64], device: &B::Device) -> Self {
        let channels = network.spec().classes;
        Self {
            network,
            loss,
            head_weights: head_weights.iter().copied().filter(|weight| *weight > 0.0).collect(),
            device_loss: DeviceLoss::new(loss, channels, device),
            batches: 0,
            loss_sum: 0.0,
            confusion: vec![[0.0; 3]; channels - first_channel(loss)],
            queued: Vec::new(),
            is_watched: false,
            seen: None,
        }
    }

    /// Enables or disables the preview of this rank's patches.
    pub fn watched(self, is_watched: bool) -> Self {
        Self { is_watched, ..self }
    }

    /// Adds this rank's part of a batch. If the device counts, the work is only queued.
    ///
    /// # Errors
    /// Returns an error if the reduction of the losses fails.
    pub fn add(&mut self, batch: DeviceBatch<B>, comm: &dyn Communicator) -> Result<(), CommError> {
        let n = batch.images.dims()[0];
        let images = self.looks_for_foreground().then(|| batch.images.clone());
        let heads = self.network.forward(batch.images, self.head_weights.len());
        self.batches += 1;
        if let Some((images, logits)) = images.zip(heads.first()) {
            self.seen = Seen::of_batch(&images, logits, &batch.targets, self.loss).or(self.seen.take());
        }
        match batch.targets {
            Targets::Host(targets) => self.count_on_host(heads, &targets, n, comm),
            Targets::Device(targets) => self.count_on_device(heads, targets, comm),
        }
    }

    /// Returns whether to search this batch for foreground; limited, because reading from a device blocks.
    fn looks_for_foreground(&self) -> bool {
        let is_blank = self.seen.as_ref().is_none_or(|seen| !seen.has_foreground());
        self.is_watched && is_blank && self.batches < LOOKED_THROUGH
    }

    fn count_on_host(
        &mut self,
        heads: Vec<Tensor<B, 5>>,
        targets: &[Array4<i16>],
        samples: usize,
        comm: &dyn Communicator,
    ) -> Result<(), CommError> {
        let mut sums = Vec::with_capacity(heads.len());
        for (head, (logits, target)) in heads.into_iter().zip(targets).enumerate() {
            let mut logits = logits.into_data().convert::<f32>().into_vec::<f32>().expect("converted to f32");
            let target = target.as_slice().expect("targets are made in C order");
            if head == 0 {
                add_all(&mut self.confusion, &count(self.loss, &logits, target));
            }
            sums.push(self.loss.sums(&mut logits, target, samples));
        }
        let global = reduce_sums(self.loss, &mut sums.iter_mut().collect::<Vec<_>>(), false, comm)?.heads;
        self.add_losses(&global);
        Ok(())
    }

    fn count_on_device(
        &mut self,
        heads: Vec<Tensor<B, 5>>,
        targets: Vec<Tensor<B, 4, Int>>,
        comm: &dyn Communicator,
    ) -> Result<(), CommError> {
        let Some(device_loss) = &self.device_loss else { unreachable!("targets are on the device where the loss is") };
        let heads: Vec<_> =
            heads.into_iter().zip(targets).map(|(logits, labels)| device_loss.sums(logits, labels)).collect();
        let globals = device_loss.all_ranks(&heads, comm)?;
        let losses = heads.iter().zip(&globals).map(|(head, global)| device_loss.logged(head, global)).collect();
        if let Some(first) = heads.into_iter().next() {
            self.queued.push(Queued { losses, counts: device_loss.counts(first) });
        }
        Ok(())
    }

    /// Waits for the sums on the device and adds them.
    fn read_device(&mut self) {
        let Some(device_loss) = self.device_loss.take() else { return };
        let queued = std::mem::take(&mut self.queued);
        let tensors = queued.iter().flat_map(|batch| batch.losses.iter().chain([&batch.counts]));
        let mut values = host_all::<B>(tensors).into_iter();
        let channels = self.network.spec().classes;
        for batch in &queued {
            let losses: Vec<_> = values.by_ref().take(batch.losses.len()).collect();
            let losses: Vec<_> = losses.iter().map(|sums| device_loss.loss_sums(sums, channels)).collect();
            self.add_losses(&losses);
            let counts = values.next().unwrap_or_default();
            let counts = device_loss.counts_of(&counts, channels);
            let confusion: Vec<_> = counts.iter().map(|[tp, found, truth]| [*tp, found - tp, truth - tp]).collect();
            add_all(&mut self.confusion, &confusion);
        }
    }

    fn add_losses(&mut self, heads: &[LossSums]) {
        let losses = heads.iter().zip(&self.head_weights).map(|(sums, weight)| weight * self.loss.value(sums).total);
        self.loss_sum += losses.sum::<f64>();
    }

    /// Computes loss and pseudo Dice over all batches of all ranks.
    ///
    /// # Errors
    /// Returns an error if the collective fails.
    pub fn finish(mut self, comm: &dyn Communicator) -> Result<ValidationResult, CommError> {
        if self.device_loss.is_some() {
            self.read_device();
            // Without batch Dice, each rank has its own Dice loss.
            comm.all_reduce_f64(std::slice::from_mut(&mut self.loss_sum), ReduceOp::Mean, "validation losses")?;
        }
        let mut flat = self.confusion.concat();
        comm.all_reduce_f64(&mut flat, ReduceOp::Sum, "pseudo Dice counts")?;
        let loss = self.loss_sum / self.batches as f64;
        Ok(ValidationResult { loss, pseudo_dice: pseudo_dice(&flat), seen: self.seen })
    }
}

/// Computes Dice per class from true positives, false positives and false negatives.
fn pseudo_dice(confusion: &[f64]) -> Vec<Option<f64>> {
    let dice = confusion.as_chunks().0.iter().map(|&[tp, fp, fn_]| {
        let denominator = 2.0 * tp + fp + fn_;
        (denominator > 0.0).then(|| 2.0 * tp / denominator)
    });
    dice.collect()
}

impl ValidationResult {
    /// Returns the mean over the classes that occurred, or 0 if none did.
    pub fn mean_pseudo_dice(&self) -> f64 {
        let known: Vec<f64> = self.pseudo_dice.iter().copied().flatten().collect();
        if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 }
    }
}

/// Returns the first scored channel: among classes, channel 0 is the background, which is not scored.
fn first_channel(loss: &SegmentationLoss) -> usize {
    usize::from(loss.target == Target::Classes)
}

/// Counts true positives, false positives and false negatives per scored channel of logits `(voxels, channels)`.
fn count(loss: &SegmentationLoss, logits: &[f32], labels: &[i16]) -> Vec<[f64; 3]> {
    let channels = logits.len() / labels.len();
    let first = first_channel(loss);
    let blocks = logits.par_chunks(BLOCK * channels).zip(labels.par_chunks(BLOCK)).map(|(logits, labels)| {
        let mut counts = vec![[0u64; 3]; channels - first];
        for (logits, &label) in logits.chunks_exact(channels).zip(labels) {
            if loss.ignore_label != Some(label) {
                count_voxel(&loss.target, logits, label, &mut counts);
            }
        }
        counts
    });
    let zero = || vec![[0u64; 3]; channels - first];
    let total = blocks.reduce(zero, |mut a, b| {
        a.iter_mut().flatten().zip(b.iter().flatten()).for_each(|(a, b)| *a += b);
        a
    });
    total.into_iter().map(|counts| counts.map(|count| count as f64)).collect()
}

fn count_voxel(target: &Target, logits: &[f32], label: i16, counts: &mut [[u64; 3]]) {
    match target {
        Target::Classes => {
            // The first of equal values wins, as in `argmax`.
            let best = (1..logits.len()).fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
            let truth = label as usize;
            if best == truth {
                if truth > 0 {
                    counts[truth - 1][0] += 1;
                }
                return;
            }
            if best > 0 {
                counts[best - 1][1] += 1;
            }
            if truth > 0 {
                counts[truth - 1][2] += 1;
            }
        }
        Target::Regions(regions) => {
            for ((&logit, members), counts) in logits.iter().zip(regions).zip(counts) {
                // Equivalent to a probability above 0.5.
                match (logit > 0.0, members.contains(&label)) {
                    (true, true) => counts[0] += 1,
                    (true, false) => counts[1] += 1,
                    (false, true) => counts[2] += 1,
                    (false, false) => {}
                }
            }
        }
    }
}

fn add_all(total: &mut [[f64; 3]], part: &[[f64; 3]]) {
    total.iter_mut().flatten().zip(part.iter().flatten()).for_each(|(total, part)| *total += part);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dice(loss: &SegmentationLoss, logits: &[f32], labels: &[i16]) -> Vec<Option<f64>> {
        pseudo_dice(&count(loss, logits, labels).concat())
    }

    #[test]
    fn classes_are_counted_by_argmax_without_background_and_ignored_voxels() {
        let loss = SegmentationLoss::new(Target::Classes, true, Some(3));
        let logits = [
            [0.0, 1.0, 0.5], // predicted 1, is 1
            [0.0, 1.0, 0.5], // predicted 1, is 0
            [2.0, 1.0, 0.5], // predicted 0, is 1
            [0.0, 9.0, 0.5], // ignored
        ];
        let dice = dice(&loss, &logits.concat(), &[1, 0, 1, 3]);
        assert_eq!(dice, [Some(0.5), None]);
    }

    #[test]
    fn regions_are_counted_by_sign_and_may_overlap() {
        let loss = SegmentationLoss::new(Target::Regions(vec![vec![1, 2], vec![2]]), true, None);
        let logits = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]];
        let dice = dice(&loss, &logits.concat(), &[2, 1, 0]);
        assert_eq!(dice, [Some(1.0), Some(2.0 / 3.0)]);
    }
}
