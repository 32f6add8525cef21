//! Soft Dice plus a per-voxel loss: nnU-Net's losses (`DC_and_CE_loss`, `DC_and_BCE_loss` for regions,
//! `DC_and_topk_loss`), and the focal loss of NVIDIA's nnU-Net.
//!
//! With activations `p`, targets `y` in {0, 1}, `I = Σ p y`, `P = Σ p`, `G = Σ y` over voxels (and samples, with batch
//! Dice), the Dice term is `-mean((2 I + s) / (P + G + s))` over classes (and samples). The per-voxel losses are
//! averaged. For classes, `p` is the softmax, and the Dice term excludes the background unless `include_background` is
//! set. For regions, `p` is the sigmoid.

use rayon::prelude::*;

use super::definition::{GlobalSums, LossCoefficients, LossSums, LossValue, SegmentationLoss, Target};
use super::tile::{TILE, Tile};
use super::topk::{TopKLosses, select};
use crate::ops::VoxelLoss;

/// Number of voxels per task. Fixed, so that sums do not depend on the number of threads.
const BLOCK: usize = 4096;
/// nnU-Net's lower bound of the Dice denominator.
const MIN_DENOMINATOR: f64 = 1e-8;
/// Upper limit on channels, which keeps the product of a tile's softmax denominators from overflowing.
const MAX_CHANNELS: usize = 1 << 13;

impl SegmentationLoss {
    /// Computes this rank's sums. Replaces the logits by the input of [`Self::gradient`]: activations (softmax or
    /// sigmoid), or the unchanged logits for the focal loss.
    ///
    /// `logits` is `(n, voxels, channels)` in C order, `labels` is `(n, voxels)`. For top-k losses,
    /// [`super::select_topk`] completes the sums.
    ///
    /// # Panics
    /// Panics if a label is not one of the classes.
    pub fn sums(&self, logits: &mut [f32], labels: &[i16], n: usize) -> LossSums {
        let shape = Extents::new(logits, labels, n);
        let classes = shape.channels - self.first_channel();
        let groups = if self.batch_dice { 1 } else { n };
        let mut sums = LossSums { dice: vec![[0.0; 3]; groups * classes], ..LossSums::default() };
        let mut each = match self.voxels {
            VoxelLoss::TopK { .. } => vec![0.0; labels.len()],
            _ => Vec::new(),
        };
        let each_of_samples = parts(&mut each, shape.voxels, n);
        for (sample, ((logits, labels), each)) in shape.samples(logits, labels).zip(each_of_samples).enumerate() {
            let blocks: Vec<LossSums> = logits
                .par_chunks_mut(BLOCK * shape.channels)
                .zip(labels.par_chunks(BLOCK))
                .zip(parts(each, BLOCK, shape.voxels.div_ceil(BLOCK)))
                .map(|((logits, labels), each)| self.activate(logits, labels, each, shape.channels))
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
        sums.topk = (!each.is_empty()).then(|| TopKLosses::new(each));
        sums
    }

    /// Computes the loss from the sums of the global batch.
    pub fn value(&self, sums: &LossSums) -> LossValue {
        let mean = || sums.dice.iter().map(|&sums| self.soft_dice(sums).0).sum::<f64>() / sums.dice.len() as f64;
        let dice = if self.dice { -mean() } else { 0.0 };
        let cross_entropy = if sums.count > 0.0 { sums.cross_entropy / sums.count } else { 0.0 };
        LossValue { total: dice + cross_entropy, dice, cross_entropy }
    }

    /// Replaces the output of [`Self::sums`] by `scale` times the gradient with respect to this rank's logits.
    ///
    /// Gradients are averaged over ranks later, so this one is the derivative of the global loss times the number of
    /// ranks.
    pub fn gradient(&self, activations: &mut [f32], labels: &[i16], n: usize, sums: &GlobalSums, scale: f64) {
        let shape = Extents::new(activations, labels, n);
        let first = self.first_channel();
        let classes = shape.channels - first;
        let world_size = sums.world_size as f64;
        let groups = if self.batch_dice { 1.0 } else { n as f64 * world_size };
        let dice_scale = if self.dice { -scale * world_size / (groups * classes as f64) } else { 0.0 };
        let voxel_scale = if sums.global.count > 0.0 { scale * world_size / sums.global.count } else { 0.0 };
        let dice_sums = if self.batch_dice { &sums.global.dice } else { &sums.local.dice };
        let topk = sums.local.topk.as_ref();

        for (sample, (activations, labels)) in shape.samples(activations, labels).enumerate() {
            let group = if self.batch_dice { 0 } else { sample };
            let zeros = vec![0.0f32; shape.channels];
            let mut coefficients = LossCoefficients {
                dice_slope: zeros.clone(),
                dice_offset: zeros,
                voxel_scale: voxel_scale as f32,
                cutoff: topk.map(TopKLosses::cutoff),
            };
            for class in 0..classes {
                let (dice, denominator) = self.soft_dice(dice_sums[group * classes + class]);
                coefficients.dice_slope[first + class] = (dice_scale * 2.0 / denominator) as f32;
                coefficients.dice_offset[first + class] = (dice_scale * dice / denominator) as f32;
            }
            let blocks = activations.par_chunks_mut(BLOCK * shape.channels).zip(labels.par_chunks(BLOCK));
            blocks.enumerate().for_each(|(block, (activations, labels))| {
                let begin = sample * shape.voxels + block * BLOCK;
                let each = topk.map_or(&[][..], |topk| &topk.losses()[begin..][..labels.len()]);
                let mut tile = Tile::new(self, shape.channels);
                let tiles = activations.chunks_mut(TILE * shape.channels).zip(labels.chunks(TILE));
                for (number, (values, labels)) in tiles.enumerate() {
                    tile.load(values, labels, self.ignore_label);
                    let each = if each.is_empty() { each } else { &each[number * TILE..][..labels.len()] };
                    tile.gradient(self, &coefficients, each);
                    tile.store(values);
                }
            });
        }
    }

    /// Returns the Dice of one group and class, and its denominator.
    fn soft_dice(&self, [intersection, activations, targets]: [f64; 3]) -> (f64, f64) {
        let denominator = (activations + targets + self.smooth).max(MIN_DENOMINATOR);
        ((2.0 * intersection + self.smooth) / denominator, denominator)
    }

    /// Replaces a block's logits by softmax or sigmoid and returns its sums. `each` is empty or receives each voxel's
    /// loss.
    fn activate(&self, logits: &mut [f32], labels: &[i16], each: &mut [f32], channels: usize) -> LossSums {
        self.check(labels, channels);
        let mut sums = LossSums { dice: vec![[0.0; 3]; channels - self.first_channel()], ..LossSums::default() };
        let mut tile = Tile::new(self, channels);
        let each = parts(each, TILE, labels.len().div_ceil(TILE));
        for ((values, labels), each) in logits.chunks_mut(TILE * channels).zip(labels.chunks(TILE)).zip(each) {
            tile.load(values, labels, self.ignore_label);
            tile.activate(self, &mut sums, each);
            if !self.needs_logits() {
                tile.store(values);
            }
        }
        sums
    }

    fn check(&self, labels: &[i16], channels: usize) {
        let known = |label: &i16| (0..channels as i16).contains(label) || self.ignore_label == Some(*label);
        if let (Target::Classes, Some(label)) = (&self.target, labels.iter().find(|label| !known(label))) {
            panic!("label {label} is not one of the {channels} classes");
        }
    }
}

/// Splits values into chunks of `len`, or returns `count` empty slices if there are no values.
fn parts(values: &mut [f32], len: usize, count: usize) -> Vec<&mut [f32]> {
    match values.is_empty() {
        true => (0..count).map(|_| Default::default()).collect(),
        false => values.chunks_mut(len).collect(),
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
        assert_eq!(logits.len(), n * extents.voxels * extents.channels, "logits and labels must have the same shape");
        assert!(extents.channels <= MAX_CHANNELS, "at most {MAX_CHANNELS} channels");
        extents
    }

    /// Iterates over the values and labels of each sample.
    fn samples<'a>(self, values: &'a mut [f32], labels: &'a [i16]) -> impl Iterator<Item = (&'a mut [f32], &'a [i16])> {
        values.chunks_exact_mut(self.voxels * self.channels).zip(labels.chunks_exact(self.voxels))
    }
}

/// Replaces the loss sums of each head by the sums over its top-k voxels. Does nothing for other losses than
/// [`VoxelLoss::TopK`].
///
/// `add_up` replaces values by their sums over all ranks (an all-reduce). It is called three times with a few thousand
/// values per head, so the selection is over the global batch and does not depend on how it is partitioned. (nnU-Net
/// selects on each rank separately.)
///
/// # Errors
/// Returns any error of `add_up`.
pub fn select_topk<E>(
    loss: &SegmentationLoss,
    heads: &mut [&mut LossSums],
    add_up: impl FnMut(&mut [f64]) -> Result<(), E>,
) -> Result<(), E> {
    let VoxelLoss::TopK { percent } = loss.voxels else { return Ok(()) };
    let mut losses: Vec<_> = heads.iter_mut().filter_map(|head| head.topk.as_mut()).collect();
    select(&mut losses, percent, add_up)?;
    for head in heads {
        if let Some(topk) = &head.topk {
            (head.cross_entropy, head.count) = topk.sums();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Barrier, Mutex};

    use super::*;

    /// Adds up values of two threads, as an all-reduce does.
    struct Exchange {
        barrier: Barrier,
        total: Mutex<Vec<f64>>,
    }

    impl Default for Exchange {
        fn default() -> Self {
            Self { barrier: Barrier::new(2), total: Mutex::default() }
        }
    }

    impl Exchange {
        fn add_up(&self, values: &mut [f64]) -> Result<(), Infallible> {
            self.total.lock().unwrap().resize(values.len(), 0.0);
            self.barrier.wait();
            self.total.lock().unwrap().iter_mut().zip(&*values).for_each(|(total, value)| *total += value);
            self.barrier.wait();
            values.copy_from_slice(&self.total.lock().unwrap());
            if self.barrier.wait().is_leader() {
                self.total.lock().unwrap().clear();
            }
            self.barrier.wait();
            Ok(())
        }
    }

    fn batch(n: usize, voxels: usize, channels: usize) -> (Vec<f32>, Vec<i16>) {
        let logits = (0..n * voxels * channels).map(|i| ((i * 37 % 101) as f32 / 25.0) - 2.0).collect();
        let labels = (0..n * voxels).map(|i| (i * 7 % channels) as i16).collect();
        (logits, labels)
    }

    fn gradient(loss: &SegmentationLoss, logits: &[f32], labels: &[i16], n: usize) -> Vec<f32> {
        let mut values = logits.to_vec();
        let sums = GlobalSums::single(sums(loss, &mut values, labels, n));
        loss.gradient(&mut values, labels, n, &sums, 1.0);
        values
    }

    fn losses() -> Vec<SegmentationLoss> {
        let regions = Target::Regions(vec![vec![1, 2], vec![2], vec![0, 2]]);
        let kinds = [VoxelLoss::CrossEntropy, VoxelLoss::None, VoxelLoss::TopK { percent: 30.0 }];
        let mut losses = Vec::new();
        for batch_dice in [false, true] {
            for ignore_label in [None, Some(2)] {
                for voxels in kinds.into_iter().chain([VoxelLoss::Focal { gamma: 2.0 }]) {
                    let classes = SegmentationLoss::new(Target::Classes, batch_dice, ignore_label);
                    let classes = SegmentationLoss { voxels, include_background: ignore_label.is_some(), ..classes };
                    if voxels != VoxelLoss::None {
                        losses.push(SegmentationLoss { dice: false, ..classes.clone() });
                    }
                    if matches!(voxels, VoxelLoss::CrossEntropy | VoxelLoss::TopK { .. }) {
                        losses.push(SegmentationLoss { class_weights: vec![0.5, 2.0, 1.0], ..classes.clone() });
                        losses.push(classes);
                    }
                    if !matches!(voxels, VoxelLoss::TopK { .. }) {
                        let regions = SegmentationLoss::new(regions.clone(), batch_dice, ignore_label);
                        losses.push(SegmentationLoss { voxels, ..regions });
                    }
                }
            }
        }
        losses
    }

    /// Sums of a single rank, completed by the top-k selection.
    fn sums(loss: &SegmentationLoss, logits: &mut [f32], labels: &[i16], n: usize) -> LossSums {
        let mut sums = loss.sums(logits, labels, n);
        select_topk(loss, &mut [&mut sums], |_| Ok::<_, ()>(())).unwrap();
        sums
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        // An odd number of voxels, larger than a tile.
        let (logits, labels) = batch(2, 71, 3);
        for loss in losses() {
            let total = |mut logits: Vec<f32>| loss.value(&sums(&loss, &mut logits, &labels, 2)).total;
            let gradient = gradient(&loss, &logits, &labels, 2);
            let mut smooth = 0;
            for index in 0..logits.len() {
                let shifted = |step: f32| {
                    let mut logits = logits.clone();
                    logits[index] += step;
                    total(logits)
                };
                let [low, here, high] = [-1e-2, 0.0, 1e-2].map(shifted);
                // The loss is not differentiable where a voxel enters or leaves the top-k selection.
                let bends = (high - 2.0 * here + low).abs() > 2e-6;
                if bends && matches!(loss.voxels, VoxelLoss::TopK { .. }) {
                    continue;
                }
                let difference = (high - low) / 2e-2;
                assert!((difference - f64::from(gradient[index])).abs() < 2e-5, "{loss:?} at {index}");
                smooth += 1;
            }
            assert!(smooth > logits.len() / 2, "{loss:?}: only {smooth} derivatives were compared");
        }
    }

    #[test]
    fn averaged_over_ranks_the_gradient_is_that_of_the_whole_batch() {
        let (logits, labels) = batch(4, 150, 3);
        for loss in losses() {
            let expected = gradient(&loss, &logits, &labels, 4);
            let whole = sums(&loss, &mut logits.clone(), &labels, 4);
            // Two ranks whose counts are added as in an all-reduce.
            let mut halves: Vec<Vec<f32>> = logits.chunks(2 * 150 * 3).map(<[f32]>::to_vec).collect();
            let labels: Vec<&[i16]> = labels.chunks(2 * 150).collect();
            let mut locals: Vec<LossSums> =
                halves.iter_mut().zip(&labels).map(|(logits, labels)| loss.sums(logits, labels, 2)).collect();
            let exchange = Exchange::default();
            std::thread::scope(|scope| {
                for local in &mut locals {
                    scope.spawn(|| select_topk(&loss, &mut [local], |values| exchange.add_up(values)));
                }
            });
            let gradient: Vec<f32> = halves
                .into_iter()
                .zip(labels)
                .zip(locals)
                .flat_map(|((mut values, labels), local)| {
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
    #[should_panic(expected = "label 3 is not one of the 3 classes")]
    fn a_label_that_is_no_class_is_refused() {
        SegmentationLoss::new(Target::Classes, true, None).sums(&mut [0.0; 6], &[3, 0], 1);
    }
}
