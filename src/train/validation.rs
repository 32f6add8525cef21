//! Validation on patches: loss and pseudo Dice of the current weights.

use burn::tensor::ops::FloatTensor;

use super::batch::DeviceBatch;
use super::confusion::{dice_from_confusion, first_scored_channel};
use super::loss_engine::{ConfusionCounts, LossEngine, ReportedLoss, read_all};
use super::preview::ValidationPreview;
use nnunet_comm::distributed::{CommError, Communicator, ReduceOp};
use nnunet_nn::loss::SegmentationLoss;
use nnunet_nn::model::UNet;
use nnunet_nn::ops::NnOps;

/// Number of batches searched for a slice with foreground.
const MAX_PREVIEW_BATCHES: usize = 8;

/// Accumulator of loss and pseudo Dice over the validation batches of one epoch and all ranks.
///
/// The pseudo Dice of a class is computed once from all voxels of all batches, as in nnU-Net; "pseudo" because it is
/// based on patches, not cases.
pub struct Validation<'a, B: NnOps> {
    network: &'a UNet<B>,
    loss: &'a SegmentationLoss,
    engine: LossEngine<B>,
    batches: usize,
    loss_sum: f64,
    /// Per foreground class or region: true positives, false positives, false negatives.
    confusion: Vec<[f64; 3]>,
    /// Batches whose sums are queued on the device.
    queued: Vec<QueuedBatch<B>>,
    /// Whether to create a preview.
    has_preview: bool,
    preview: Option<ValidationPreview>,
}

/// Sums of one batch on the device.
struct QueuedBatch<B: NnOps> {
    /// Loss sums of each head.
    losses: Vec<FloatTensor<B>>,
    confusion: FloatTensor<B>,
}

/// Result of a [`Validation`].
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationResult {
    /// Mean deep-supervision loss.
    pub loss: f64,
    /// Pseudo Dice per foreground class or region; `None` for one that occurs neither in labels nor in predictions.
    pub pseudo_dice: Vec<Option<f64>>,
    /// Preview of one of this rank's patches, if enabled.
    pub preview: Option<ValidationPreview>,
}

impl<'a, B: NnOps> Validation<'a, B> {
    /// Creates an empty accumulator.
    pub fn new(network: &'a UNet<B>, loss: &'a SegmentationLoss, head_weights: &[f64], device: &B::Device) -> Self {
        let channels = network.spec().classes;
        Self {
            network,
            loss,
            engine: LossEngine::new(loss.clone(), head_weights, channels, device),
            batches: 0,
            loss_sum: 0.0,
            confusion: vec![[0.0; 3]; channels - first_scored_channel(loss)],
            queued: Vec::new(),
            has_preview: false,
            preview: None,
        }
    }

    /// Enables or disables the preview of this rank's patches.
    pub fn with_preview(self, has_preview: bool) -> Self {
        Self { has_preview, ..self }
    }

    /// Adds this rank's part of a batch. If the device computes the loss, the work is only queued.
    ///
    /// # Errors
    /// Returns an error if the reduction of the losses fails.
    pub fn add(&mut self, batch: DeviceBatch<B>, comm: &dyn Communicator) -> Result<(), CommError> {
        let images = self.needs_preview().then(|| batch.images.clone());
        let logits = self.network.forward(batch.images, self.engine.heads());
        self.batches += 1;
        let Some(first) = logits.first().cloned() else { return Ok(()) };
        if let Some(images) = images {
            let preview = ValidationPreview::from_batch(&images, &first, &batch.targets, self.loss);
            self.preview = preview.or(self.preview.take());
        }
        let mut loss = self.engine.sums(logits, &batch.targets);
        self.engine.all_reduce(&mut loss, false, comm)?;
        let reported = self.engine.reported(&loss);
        match (reported, self.engine.confusion(&first, loss)) {
            (ReportedLoss::Known(loss), Some(ConfusionCounts::Known(counts))) => {
                self.loss_sum += loss;
                add_all(&mut self.confusion, &counts);
            }
            (ReportedLoss::Queued(losses), Some(ConfusionCounts::Queued(confusion))) => {
                self.queued.push(QueuedBatch { losses, confusion });
            }
            _ => unreachable!("loss and counts are computed in one place, from one head at least"),
        }
        Ok(())
    }

    /// Returns whether to search this batch for foreground; limited, because reading from a device blocks.
    fn needs_preview(&self) -> bool {
        let is_blank = self.preview.as_ref().is_none_or(|preview| !preview.has_foreground());
        self.has_preview && is_blank && self.batches < MAX_PREVIEW_BATCHES
    }

    /// Waits for the sums on the device and adds them.
    fn read_queued(&mut self) {
        let queued = std::mem::take(&mut self.queued);
        let tensors = queued.iter().flat_map(|batch| batch.losses.iter().chain([&batch.confusion]));
        let mut values = read_all::<B>(tensors).into_iter();
        for batch in &queued {
            let losses: Vec<_> = values.by_ref().take(batch.losses.len()).collect();
            self.loss_sum += self.engine.value(&losses);
            let counts = self.engine.confusion_from(&values.next().unwrap_or_default());
            add_all(&mut self.confusion, &counts);
        }
    }

    /// Computes loss and pseudo Dice over all batches of all ranks.
    ///
    /// # Errors
    /// Returns an error if the collective fails.
    pub fn finish(mut self, comm: &dyn Communicator) -> Result<ValidationResult, CommError> {
        if self.engine.is_queued() {
            self.read_queued();
            // Without batch Dice, each rank has its own Dice loss.
            comm.all_reduce_f64(std::slice::from_mut(&mut self.loss_sum), ReduceOp::Mean, "validation losses")?;
        }
        let mut flat = self.confusion.concat();
        comm.all_reduce_f64(&mut flat, ReduceOp::Sum, "pseudo Dice counts")?;
        let loss = self.loss_sum / self.batches as f64;
        Ok(ValidationResult { loss, pseudo_dice: dice_from_confusion(&flat), preview: self.preview })
    }
}

impl ValidationResult {
    /// Returns the mean over the classes that occurred, or 0 if none did.
    pub fn mean_pseudo_dice(&self) -> f64 {
        let known: Vec<f64> = self.pseudo_dice.iter().copied().flatten().collect();
        if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 }
    }
}

fn add_all(total: &mut [[f64; 3]], part: &[[f64; 3]]) {
    total.iter_mut().flatten().zip(part.iter().flatten()).for_each(|(total, part)| *total += part);
}
