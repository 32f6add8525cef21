//! Confusion counts of segmentations: true positives, false positives and false negatives.

use rayon::prelude::*;

use nnunet_nn::loss::{SegmentationLoss, Target};

/// Voxels per parallel task.
const BLOCK: usize = 1 << 14;

/// Returns the first scored channel: among classes, channel 0 is the background, which is not scored.
pub(super) fn first_scored_channel(loss: &SegmentationLoss) -> usize {
    usize::from(loss.target == Target::Classes)
}

/// Computes Dice per class from true positives, false positives and false negatives; `None` for a class that occurs
/// neither in labels nor in predictions.
pub(super) fn dice_from_confusion(confusion: &[f64]) -> Vec<Option<f64>> {
    let dice = confusion.as_chunks().0.iter().map(|&[tp, fp, fn_]| {
        let denominator = 2.0 * tp + fp + fn_;
        (denominator > 0.0).then(|| 2.0 * tp / denominator)
    });
    dice.collect()
}

/// Counts true positives, false positives and false negatives per scored channel of logits `(voxels, channels)`.
pub(super) fn count_confusion(loss: &SegmentationLoss, logits: &[f32], labels: &[i16]) -> Vec<[f64; 3]> {
    let channels = logits.len() / labels.len();
    let first = first_scored_channel(loss);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn dice(loss: &SegmentationLoss, logits: &[f32], labels: &[i16]) -> Vec<Option<f64>> {
        dice_from_confusion(&count_confusion(loss, logits, labels).concat())
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
