//! Soft Dice + cross-entropy, nnU-Net's loss (`DC_and_CE_loss`, and `DC_and_BCE_loss` for regions).
//!
//! With activations `p`, targets `y` in {0, 1}, `I = Σ p y`, `P = Σ p`, `G = Σ y` over voxels (and samples, with batch
//! Dice), the Dice term is `-mean((2 I + s) / (P + G + s))` over classes (and samples); cross-entropy is the mean over
//! voxels. For classes, `p` is the softmax and the Dice term leaves out the background; for regions, `p` is the sigmoid.

use rayon::prelude::*;

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
/// More channels than any segmentation has; bounds the stack space of a voxel's activations.
const MAX_CHANNELS: usize = 1024;

impl SegmentationLoss {
    /// nnU-Net's defaults.
    pub fn new(target: Target, batch_dice: bool, ignore_label: Option<i16>) -> Self {
        Self { target, batch_dice, smooth: 1e-5, ignore_label }
    }

    /// This rank's sums. `logits` is `(n, voxels, channels)` in C order, `labels` `(n, voxels)`.
    pub fn sums(&self, logits: &[f32], labels: &[i16], n: usize) -> LossSums {
        let shape = Extents::new(logits, labels, n);
        let first = self.first_dice_channel();
        let classes = shape.channels - first;
        let groups = if self.batch_dice { 1 } else { n };
        let mut sums = LossSums { dice: vec![[0.0; 3]; groups * classes], cross_entropy: 0.0, count: 0.0 };
        for sample in 0..n {
            let (logits, labels) = shape.sample(logits, labels, sample);
            let blocks: Vec<LossSums> = logits
                .par_chunks(BLOCK * shape.channels)
                .zip(labels.par_chunks(BLOCK))
                .map(|(logits, labels)| self.block_sums(logits, labels, shape.channels))
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

    /// `scale` times the gradient of the loss with respect to this rank's logits, in their layout.
    ///
    /// Gradients are averaged over ranks afterwards, so this one is the number of ranks times the derivative of the
    /// global loss.
    pub fn gradient(&self, logits: &[f32], labels: &[i16], n: usize, sums: &GlobalSums, scale: f64) -> Vec<f32> {
        let shape = Extents::new(logits, labels, n);
        let first = self.first_dice_channel();
        let classes = shape.channels - first;
        let world_size = sums.world_size as f64;
        let groups = if self.batch_dice { 1.0 } else { n as f64 * world_size };
        let dice_scale = -scale * world_size / (groups * classes as f64);
        let ce_scale = if sums.global.count > 0.0 { scale * world_size / sums.global.count } else { 0.0 };
        let dice_sums = if self.batch_dice { &sums.global.dice } else { &sums.local.dice };

        let mut gradient = vec![0.0f32; logits.len()];
        for (sample, gradient) in gradient.chunks_exact_mut(shape.voxels * shape.channels).enumerate() {
            let (logits, labels) = shape.sample(logits, labels, sample);
            let group = if self.batch_dice { 0 } else { sample };
            // d dice / d p is `slope * y - offset` with one slope and offset per class.
            let (mut slopes, mut offsets) = (vec![0.0f32; shape.channels], vec![0.0f32; shape.channels]);
            for class in 0..classes {
                let (dice, denominator) = self.soft_dice(dice_sums[group * classes + class]);
                slopes[first + class] = (dice_scale * 2.0 / denominator) as f32;
                offsets[first + class] = (dice_scale * dice / denominator) as f32;
            }
            let voxel = VoxelGradient { loss: self, slopes, offsets, ce_scale: ce_scale as f32 };
            gradient
                .par_chunks_mut(BLOCK * shape.channels)
                .zip(logits.par_chunks(BLOCK * shape.channels))
                .zip(labels.par_chunks(BLOCK))
                .for_each(|((gradient, logits), labels)| voxel.block(gradient, logits, labels, shape.channels));
        }
        gradient
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

    fn block_sums(&self, logits: &[f32], labels: &[i16], channels: usize) -> LossSums {
        let first = self.first_dice_channel();
        let mut sums = LossSums { dice: vec![[0.0; 3]; channels - first], cross_entropy: 0.0, count: 0.0 };
        let mut activations = [0.0f32; MAX_CHANNELS];
        let activations = &mut activations[..channels];
        for (logits, &label) in logits.chunks_exact(channels).zip(labels) {
            if self.ignore_label == Some(label) {
                continue;
            }
            sums.cross_entropy += self.activate(logits, label, activations);
            sums.count += if self.target == Target::Classes { 1.0 } else { channels as f64 };
            let scored = activations.iter().enumerate().skip(first);
            for ((channel, p), [intersection, activation, target]) in scored.zip(&mut sums.dice) {
                let p = f64::from(*p);
                *activation += p;
                if self.contains(channel, label) {
                    *intersection += p;
                    *target += 1.0;
                }
            }
        }
        sums
    }

    /// Whether a voxel with this label belongs to the channel's class or region.
    #[inline]
    fn contains(&self, channel: usize, label: i16) -> bool {
        match &self.target {
            Target::Classes => label as usize == channel,
            Target::Regions(regions) => regions[channel].contains(&label),
        }
    }

    /// Softmax or sigmoid of one voxel's logits, and the cross-entropy with its label (summed over regions).
    #[inline]
    fn activate(&self, logits: &[f32], label: i16, activations: &mut [f32]) -> f64 {
        match &self.target {
            Target::Classes => {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for (p, logit) in activations.iter_mut().zip(logits) {
                    *p = (logit - largest).exp();
                    sum += *p;
                }
                activations.iter_mut().for_each(|p| *p /= sum);
                f64::from(largest + sum.ln() - logits[label as usize])
            }
            Target::Regions(_) => {
                let mut cross_entropy = 0.0;
                for (channel, (p, &logit)) in activations.iter_mut().zip(logits).enumerate() {
                    *p = 1.0 / (1.0 + (-logit).exp());
                    let target = if self.contains(channel, label) { logit } else { 0.0 };
                    cross_entropy += f64::from(logit.max(0.0) - target + (-logit.abs()).exp().ln_1p());
                }
                cross_entropy
            }
        }
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

/// The gradient of one sample's voxels.
struct VoxelGradient<'a> {
    loss: &'a SegmentationLoss,
    slopes: Vec<f32>,
    offsets: Vec<f32>,
    ce_scale: f32,
}

impl VoxelGradient<'_> {
    fn block(&self, gradient: &mut [f32], logits: &[f32], labels: &[i16], channels: usize) {
        let mut activations = [0.0f32; MAX_CHANNELS];
        let p = &mut activations[..channels];
        for ((gradient, logits), &label) in
            gradient.chunks_exact_mut(channels).zip(logits.chunks_exact(channels)).zip(labels)
        {
            if self.loss.ignore_label == Some(label) {
                continue;
            }
            self.loss.activate(logits, label, p);
            // Through the Dice term first: gradient with respect to the activations.
            let mut projection = 0.0;
            for channel in 0..channels {
                let target = self.loss.contains(channel, label);
                gradient[channel] = if target { self.slopes[channel] } else { 0.0 } - self.offsets[channel];
                projection += gradient[channel] * p[channel];
            }
            for channel in 0..channels {
                let jacobian = match self.loss.target {
                    Target::Classes => p[channel] * (gradient[channel] - projection),
                    Target::Regions(_) => p[channel] * (1.0 - p[channel]) * gradient[channel],
                };
                let target = f32::from(u8::from(self.loss.contains(channel, label)));
                gradient[channel] = jacobian + self.ce_scale * (p[channel] - target);
            }
        }
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

    fn sample<'a>(&self, logits: &'a [f32], labels: &'a [i16], sample: usize) -> (&'a [f32], &'a [i16]) {
        let voxels = sample * self.voxels..(sample + 1) * self.voxels;
        (&logits[voxels.start * self.channels..voxels.end * self.channels], &labels[voxels])
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
            let total = |logits: &[f32]| loss.value(&loss.sums(logits, &labels, 2)).total;
            let sums = GlobalSums::single(loss.sums(&logits, &labels, 2));
            let gradient = loss.gradient(&logits, &labels, 2, &sums, 1.0);
            for index in 0..logits.len() {
                let shifted = |step: f32| {
                    let mut logits = logits.clone();
                    logits[index] += step;
                    total(&logits)
                };
                let difference = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
                assert!((difference - f64::from(gradient[index])).abs() < 2e-5, "{loss:?} at {index}");
            }
        }
    }

    #[test]
    fn averaged_over_ranks_the_gradient_is_that_of_the_whole_batch() {
        let (logits, labels) = batch(4, 9, 3);
        for loss in losses() {
            let whole = loss.sums(&logits, &labels, 4);
            let expected = loss.gradient(&logits, &labels, 4, &GlobalSums::single(whole.clone()), 0.5);
            let halves = logits.chunks(2 * 9 * 3).zip(labels.chunks(2 * 9));
            let gradient: Vec<f32> = halves
                .flat_map(|(logits, labels)| {
                    let local = loss.sums(logits, labels, 2);
                    let sums = GlobalSums { local, global: whole.clone(), world_size: 2 };
                    loss.gradient(logits, labels, 2, &sums, 0.5)
                })
                .map(|gradient| gradient / 2.0)
                .collect();
            for (ours, expected) in gradient.iter().zip(&expected) {
                assert!((ours - expected).abs() < 1e-7, "{loss:?}");
            }
        }
    }
}
