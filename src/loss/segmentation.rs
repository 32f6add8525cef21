//! Soft Dice + cross-entropy, nnU-Net's loss (`DC_and_CE_loss`, and `DC_and_BCE_loss` for regions).
//!
//! With activations `p`, targets `y` in {0, 1}, `I = Σ p y`, `P = Σ p`, `G = Σ y` over voxels (and samples, with batch
//! Dice), the Dice term is `-mean((2 I + s) / (P + G + s))` over classes (and samples); cross-entropy is the mean over
//! voxels. For classes, `p` is the softmax and the Dice term leaves out the background; for regions, `p` is the sigmoid.

use rayon::prelude::*;

use super::tile::{Slopes, TILE, Tile};

/// What the logits stand for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One channel per class, the first is background; a voxel has one class.
    Classes,
    /// One channel per region; a voxel is in every region that lists its label.
    Regions(Vec<Vec<i16>>),
}

/// Soft Dice + cross-entropy over a batch of logits `(n, voxels, channels)` and labels `(n, voxels)`.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentationLoss {
    pub target: Target,
    /// Dice over the whole batch (of all ranks) instead of per sample.
    pub batch_dice: bool,
    /// Added to numerator and denominator of the Dice.
    pub smooth: f64,
    /// Voxels with this label do not count.
    pub ignore_label: Option<i16>,
}

/// Sums over the voxels of one rank; adding those of all ranks gives the global batch's.
#[derive(Clone, Debug, PartialEq)]
pub struct LossSums {
    /// Per group (sample, or the batch) and Dice class: intersection, activation and target sums.
    pub dice: Vec<[f64; 3]>,
    /// Sum of the cross-entropies.
    pub cross_entropy: f64,
    /// Number of cross-entropies summed.
    pub count: f64,
}

/// A loss and its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossValue {
    /// `dice + cross_entropy`.
    pub total: f64,
    /// Minus the mean soft Dice.
    pub dice: f64,
    pub cross_entropy: f64,
}

/// Voxels one task handles; fixed, so that sums do not depend on the number of threads.
const BLOCK: usize = 4096;
/// nnU-Net's lower bound of the Dice denominator.
const MIN_DENOMINATOR: f64 = 1e-8;
/// More channels than any segmentation has; the product of a tile's softmax denominators must not overflow.
const MAX_CHANNELS: usize = 1 << 13;

impl SegmentationLoss {
    /// nnU-Net's defaults.
    pub fn new(target: Target, batch_dice: bool, ignore_label: Option<i16>) -> Self {
        Self { target, batch_dice, smooth: 1e-5, ignore_label }
    }

    /// This rank's sums; leaves activations (softmax or sigmoid) where the logits were, for [`Self::gradient`].
    ///
    /// `logits` is `(n, voxels, channels)` in C order, `labels` `(n, voxels)`.
    ///
    /// # Panics
    /// If a label is none of the classes.
    pub fn sums(&self, logits: &mut [f32], labels: &[i16], n: usize) -> LossSums {
        let shape = Extents::new(logits, labels, n);
        let classes = shape.channels - self.first_dice_channel();
        let groups = if self.batch_dice { 1 } else { n };
        let mut sums = LossSums::zero(groups * classes);
        for (sample, (logits, labels)) in shape.samples(logits, labels).enumerate() {
            let blocks: Vec<LossSums> = logits
                .par_chunks_mut(BLOCK * shape.channels)
                .zip(labels.par_chunks(BLOCK))
                .map(|(logits, labels)| self.activate(logits, labels, shape.channels))
                .collect();
            let group = if self.batch_dice { 0 } else { sample };
            for block in blocks {
                for (total, part) in sums.dice[group * classes..].iter_mut().zip(&block.dice) {
                    total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
                }
                sums.cross_entropy += block.cross_entropy;
                sums.count += block.count;
            }
        }
        sums
    }

    /// The loss of the batch whose sums these are.
    pub fn value(&self, sums: &LossSums) -> LossValue {
        let dice = sums.dice.iter().map(|&sums| self.soft_dice(sums).0).sum::<f64>() / sums.dice.len() as f64;
        let cross_entropy = if sums.count > 0.0 { sums.cross_entropy / sums.count } else { 0.0 };
        LossValue { total: cross_entropy - dice, dice: -dice, cross_entropy }
    }

    /// Turns the activations that [`Self::sums`] has left into `scale` times the gradient of the loss with respect to this
    /// rank's logits.
    ///
    /// Gradients are averaged over ranks afterwards, so this one is the number of ranks times the derivative of the
    /// global loss.
    pub fn gradient(&self, activations: &mut [f32], labels: &[i16], n: usize, sums: &GlobalSums, scale: f64) {
        let shape = Extents::new(activations, labels, n);
        let first = self.first_dice_channel();
        let classes = shape.channels - first;
        let world_size = sums.world_size as f64;
        let groups = if self.batch_dice { 1.0 } else { n as f64 * world_size };
        let dice_scale = -scale * world_size / (groups * classes as f64);
        let ce_scale = if sums.global.count > 0.0 { scale * world_size / sums.global.count } else { 0.0 };
        let dice_sums = if self.batch_dice { &sums.global.dice } else { &sums.local.dice };

        for (sample, (activations, labels)) in shape.samples(activations, labels).enumerate() {
            let group = if self.batch_dice { 0 } else { sample };
            let zeros = vec![0.0f32; shape.channels];
            let mut slopes = Slopes { slope: zeros.clone(), offset: zeros, cross_entropy: ce_scale as f32 };
            for class in 0..classes {
                let (dice, denominator) = self.soft_dice(dice_sums[group * classes + class]);
                slopes.slope[first + class] = (dice_scale * 2.0 / denominator) as f32;
                slopes.offset[first + class] = (dice_scale * dice / denominator) as f32;
            }
            let blocks = activations.par_chunks_mut(BLOCK * shape.channels).zip(labels.par_chunks(BLOCK));
            blocks.for_each(|(activations, labels)| {
                self.for_tiles(activations, labels, shape.channels, |tile| tile.gradient(&self.target, &slopes));
            });
        }
    }

    /// The Dice of one group and class, and its denominator.
    fn soft_dice(&self, [intersection, activations, targets]: [f64; 3]) -> (f64, f64) {
        let denominator = (activations + targets + self.smooth).max(MIN_DENOMINATOR);
        ((2.0 * intersection + self.smooth) / denominator, denominator)
    }

    /// The background takes no part in the Dice of classes.
    fn first_dice_channel(&self) -> usize {
        usize::from(self.target == Target::Classes)
    }

    /// Softmax or sigmoid of a block in place, and its sums.
    fn activate(&self, logits: &mut [f32], labels: &[i16], channels: usize) -> LossSums {
        self.check(labels, channels);
        let mut sums = LossSums::zero(channels - self.first_dice_channel());
        self.for_tiles(logits, labels, channels, |tile| tile.activate(&self.target, &mut sums));
        sums
    }

    fn check(&self, labels: &[i16], channels: usize) {
        let known = |label: &i16| (0..channels as i16).contains(label) || self.ignore_label == Some(*label);
        if let (Target::Classes, Some(label)) = (&self.target, labels.iter().find(|label| !known(label))) {
            panic!("label {label} is none of {channels} classes");
        }
    }

    /// Hands a block's values `(voxels, channels)` out tile by tile, to be changed in place.
    fn for_tiles(&self, values: &mut [f32], labels: &[i16], channels: usize, mut change: impl FnMut(&mut Tile)) {
        let mut tile = Tile::new(channels);
        for (values, labels) in values.chunks_mut(TILE * channels).zip(labels.chunks(TILE)) {
            tile.load(values, labels, self.ignore_label);
            change(&mut tile);
            tile.store(values);
        }
    }
}

impl LossSums {
    fn zero(dice: usize) -> Self {
        Self { dice: vec![[0.0; 3]; dice], cross_entropy: 0.0, count: 0.0 }
    }
}

/// The sums a gradient needs.
#[derive(Clone, Debug)]
pub struct GlobalSums {
    /// Of this rank.
    pub local: LossSums,
    /// Of all ranks; of its Dice sums only batch Dice has use.
    pub global: LossSums,
    /// Number of ranks.
    pub world_size: usize,
}

impl GlobalSums {
    /// For a single rank.
    pub fn single(sums: LossSums) -> Self {
        Self { local: sums.clone(), global: sums, world_size: 1 }
    }
}

/// Extents of a batch of logits.
#[derive(Clone, Copy)]
struct Extents {
    voxels: usize,
    channels: usize,
}

impl Extents {
    fn new(logits: &[f32], labels: &[i16], n: usize) -> Self {
        let extents = Self { voxels: labels.len() / n, channels: logits.len() / labels.len() };
        assert_eq!(logits.len(), n * extents.voxels * extents.channels, "logits and labels of one shape");
        assert!(extents.channels <= MAX_CHANNELS, "at most {MAX_CHANNELS} channels");
        extents
    }

    /// Values and labels of each sample.
    fn samples<'a>(self, values: &'a mut [f32], labels: &'a [i16]) -> impl Iterator<Item = (&'a mut [f32], &'a [i16])> {
        values.chunks_exact_mut(self.voxels * self.channels).zip(labels.chunks_exact(self.voxels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(n: usize, voxels: usize, channels: usize) -> (Vec<f32>, Vec<i16>) {
        let logits = (0..n * voxels * channels).map(|i| ((i * 37 % 101) as f32 / 25.0) - 2.0).collect();
        let labels = (0..n * voxels).map(|i| (i * 7 % channels) as i16).collect();
        (logits, labels)
    }

    fn gradient(loss: &SegmentationLoss, logits: &[f32], labels: &[i16], n: usize) -> Vec<f32> {
        let mut values = logits.to_vec();
        let sums = GlobalSums::single(loss.sums(&mut values, labels, n));
        loss.gradient(&mut values, labels, n, &sums, 1.0);
        values
    }

    fn losses() -> Vec<SegmentationLoss> {
        let regions = Target::Regions(vec![vec![1, 2], vec![2], vec![0, 2]]);
        let mut losses = Vec::new();
        for batch_dice in [false, true] {
            losses.push(SegmentationLoss::new(Target::Classes, batch_dice, None));
            losses.push(SegmentationLoss::new(Target::Classes, batch_dice, Some(2)));
            losses.push(SegmentationLoss::new(regions.clone(), batch_dice, None));
        }
        losses
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (logits, labels) = batch(2, 11, 3);
        for loss in losses() {
            let total = |mut logits: Vec<f32>| loss.value(&loss.sums(&mut logits, &labels, 2)).total;
            let gradient = gradient(&loss, &logits, &labels, 2);
            for index in 0..logits.len() {
                let shifted = |step: f32| {
                    let mut logits = logits.clone();
                    logits[index] += step;
                    total(logits)
                };
                let difference = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
                assert!((difference - f64::from(gradient[index])).abs() < 2e-5, "{loss:?} at {index}");
            }
        }
    }

    #[test]
    fn averaged_over_ranks_the_gradient_is_that_of_the_whole_batch() {
        let (logits, labels) = batch(4, 150, 3);
        for loss in losses() {
            let expected = gradient(&loss, &logits, &labels, 4);
            let whole = loss.sums(&mut logits.clone(), &labels, 4);
            let halves = logits.chunks(2 * 150 * 3).zip(labels.chunks(2 * 150));
            let gradient: Vec<f32> = halves
                .flat_map(|(logits, labels)| {
                    let mut values = logits.to_vec();
                    let local = loss.sums(&mut values, labels, 2);
                    let sums = GlobalSums { local, global: whole.clone(), world_size: 2 };
                    loss.gradient(&mut values, labels, 2, &sums, 1.0);
                    values
                })
                .map(|gradient| gradient / 2.0)
                .collect();
            for (ours, expected) in gradient.iter().zip(&expected) {
                assert!((ours - expected).abs() < 1e-7, "{loss:?}");
            }
        }
    }

    #[test]
    fn ignored_voxels_have_no_gradient_and_large_logits_no_overflow() {
        let loss = SegmentationLoss::new(Target::Classes, true, Some(2));
        let got = gradient(&loss, &[1e4, -1e4, 5.0, 5.0, -1e4, 1e4], &[0, 2, 0], 1);
        assert_eq!(got[2..4], [0.0; 2]);
        assert!(got.iter().all(|value| value.is_finite()), "{got:?}");
        let mut wrong = [1e4, -1e4, 5.0, 5.0, -1e4, 1e4];
        assert_eq!(loss.sums(&mut wrong, &[0, 2, 0], 1).cross_entropy, 2e4);
    }

    #[test]
    #[should_panic(expected = "label 3 is none of 3 classes")]
    fn a_label_that_is_no_class_is_refused() {
        SegmentationLoss::new(Target::Classes, true, None).sums(&mut [0.0; 6], &[3, 0], 1);
    }
}
