//! Validation on patches: loss and pseudo Dice of the current weights.

use ndarray::{Array4, ArrayView5};
use rayon::prelude::*;

use super::batch::head_targets;
use super::sums::reduce_sums;
use crate::dist::{CommError, Communicator, ReduceOp};
use crate::loss::{SegmentationLoss, Target};
use crate::model::{UNet, batch_tensor};
use crate::ops::NnOps;

/// Voxels one task counts.
const BLOCK: usize = 1 << 14;

/// Sums over the validation batches of one epoch, over all ranks.
///
/// The pseudo Dice of a class is computed once from all voxels of all batches, as nnU-Net does; "pseudo" because
/// patches, not cases, are counted.
#[derive(Clone, Debug)]
pub struct Validation {
    batches: usize,
    loss: f64,
    /// Per foreground class or region: true positives, false positives, false negatives.
    confusion: Vec<[f64; 3]>,
}

/// What [`Validation`] comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidationResult {
    /// Mean deep-supervision loss.
    pub loss: f64,
    /// Per foreground class or region; `None` for one that was neither there nor predicted.
    pub pseudo_dice: Vec<Option<f64>>,
}

impl Validation {
    /// Nothing counted yet of `channels` logits.
    pub fn new(loss: &SegmentationLoss, channels: usize) -> Self {
        Self { batches: 0, loss: 0.0, confusion: vec![[0.0; 3]; channels - first_channel(loss)] }
    }

    /// Adds this rank's part of a batch: images `(n, c, z, y, x)`, labels `(n, z, y, x)`.
    ///
    /// # Errors
    /// Of the collective that adds up the losses.
    pub fn add<B: NnOps>(
        &mut self,
        network: &UNet<B>,
        loss: &SegmentationLoss,
        head_weights: &[f64],
        (images, labels): (ArrayView5<f32>, &Array4<i16>),
        comm: &dyn Communicator,
        device: &B::Device,
    ) -> Result<(), CommError> {
        let n = images.dim().0;
        let targets = head_targets(network.spec(), head_weights, labels.view());
        let heads = network.forward(batch_tensor(images, device), targets.len());
        let mut sums = Vec::with_capacity(heads.len());
        for (head, (logits, target)) in heads.into_iter().zip(&targets).enumerate() {
            let mut logits = logits.into_data().convert::<f32>().into_vec::<f32>().expect("converted to f32");
            let target = target.as_slice().expect("targets are made in C order");
            if head == 0 {
                add_all(&mut self.confusion, &count(loss, &logits, target));
            }
            sums.push(loss.sums(&mut logits, target, n));
        }
        let global = reduce_sums(&sums.iter().collect::<Vec<_>>(), loss.batch_dice, false, comm)?.heads;
        let weights = head_weights.iter().filter(|weight| **weight > 0.0);
        self.loss += global.iter().zip(weights).map(|(sums, weight)| weight * loss.value(sums).total).sum::<f64>();
        self.batches += 1;
        Ok(())
    }

    /// Loss and pseudo Dice over all batches of all ranks.
    ///
    /// # Errors
    /// Of the collective.
    pub fn finish(self, comm: &dyn Communicator) -> Result<ValidationResult, CommError> {
        let mut flat = self.confusion.concat();
        comm.all_reduce_f64(&mut flat, ReduceOp::Sum, "pseudo Dice counts")?;
        let pseudo_dice = flat.as_chunks().0.iter().map(|&[tp, fp, fn_]| {
            let denominator = 2.0 * tp + fp + fn_;
            (denominator > 0.0).then(|| 2.0 * tp / denominator)
        });
        Ok(ValidationResult { loss: self.loss / self.batches as f64, pseudo_dice: pseudo_dice.collect() })
    }
}

impl ValidationResult {
    /// Mean over the classes that occurred; 0 where none did.
    pub fn mean_pseudo_dice(&self) -> f64 {
        let known: Vec<f64> = self.pseudo_dice.iter().copied().flatten().collect();
        if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 }
    }
}

/// The background is a channel of its own only among classes, and is not scored.
fn first_channel(loss: &SegmentationLoss) -> usize {
    usize::from(loss.target == Target::Classes)
}

/// True positives, false positives and false negatives per scored channel of logits `(voxels, channels)`.
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
            // The first of equals wins, as in `argmax`.
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
                // A probability above 0.5.
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
    use crate::dist::Single;

    fn pseudo_dice(loss: &SegmentationLoss, logits: &[f32], labels: &[i16]) -> Vec<Option<f64>> {
        let mut validation = Validation::new(loss, logits.len() / labels.len());
        add_all(&mut validation.confusion, &count(loss, logits, labels));
        validation.finish(&Single).unwrap().pseudo_dice
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
        let dice = pseudo_dice(&loss, &logits.concat(), &[1, 0, 1, 3]);
        assert_eq!(dice, [Some(0.5), None]);
    }

    #[test]
    fn regions_are_counted_by_sign_and_may_overlap() {
        let loss = SegmentationLoss::new(Target::Regions(vec![vec![1, 2], vec![2]]), true, None);
        let logits = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]];
        let dice = pseudo_dice(&loss, &logits.concat(), &[2, 1, 0]);
        assert_eq!(dice, [Some(1.0), Some(2.0 / 3.0)]);
    }
}
