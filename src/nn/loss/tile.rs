//! Vectorized loss arithmetic on tiles of voxels, stored channel by channel. Every inner loop runs over voxels and is
//! compiled for the widest vector instructions of the machine.

use std::f32::consts::{LN_2, LOG2_E};

use multiversion::multiversion;

use super::definition::{LossCoefficients, LossSums, SegmentationLoss, Target};
use crate::ops::VoxelLoss;
use nnunet_core::math::{exp2, log2, power};

/// Number of voxels per tile.
pub const TILE: usize = 64;

type Lane = [f32; TILE];

/// Values and labels of up to [`TILE`] voxels. Missing voxels are masked out.
pub struct Tile {
    /// Logits or activations, per channel.
    values: Vec<Lane>,
    /// Derivatives of the Dice term with respect to the activations, per channel; scratch space of [`Tile::gradient`].
    dice_gradients: Vec<Lane>,
    /// Derivatives of the focal loss with respect to the logits, per channel; empty for other losses.
    focal: Vec<Lane>,
    labels: [i16; TILE],
    /// Mask: 1 for voxels that count, 0 for ignored or missing ones.
    counted: Lane,
}

impl Tile {
    /// Creates an empty tile.
    pub fn new(loss: &SegmentationLoss, channels: usize) -> Self {
        let focal = if loss.needs_logits() { channels } else { 0 };
        Self {
            values: vec![[0.0; TILE]; channels],
            dice_gradients: vec![[0.0; TILE]; channels],
            focal: vec![[0.0; TILE]; focal],
            labels: [0; TILE],
            counted: [0.0; TILE],
        }
    }

    /// Loads values `(voxels, channels)` and labels, transposing to channel-first.
    pub fn load(&mut self, values: &[f32], labels: &[i16], ignore_label: Option<i16>) {
        let channels = self.values.len();
        self.counted = [0.0; TILE];
        self.labels[..labels.len()].copy_from_slice(labels);
        for (counted, &label) in self.counted.iter_mut().zip(labels) {
            *counted = if ignore_label == Some(label) { 0.0 } else { 1.0 };
        }
        for (channel, lane) in self.values.iter_mut().enumerate() {
            for (voxel, value) in lane[..labels.len()].iter_mut().enumerate() {
                *value = values[voxel * channels + channel];
            }
            lane[labels.len()..].fill(0.0);
        }
    }

    /// Writes the values back as `(voxels, channels)`.
    pub fn store(&self, values: &mut [f32]) {
        let channels = self.values.len();
        for (channel, lane) in self.values.iter().enumerate() {
            for (value, voxel) in values.chunks_exact_mut(channels).zip(lane) {
                value[channel] = *voxel;
            }
        }
    }

    /// Replaces logits by their softmax or sigmoid and adds the loss sums of the voxels that count. For
    /// [`VoxelLoss::TopK`], `each` receives the loss of each voxel, which is then not added to the sums.
    pub fn activate(&mut self, loss: &SegmentationLoss, sums: &mut LossSums, each: &mut [f32]) {
        activate(self, loss, sums, each);
    }

    #[inline(always)]
    fn activate_inlined(&mut self, loss: &SegmentationLoss, sums: &mut LossSums, each: &mut [f32]) {
        if let VoxelLoss::Focal { gamma } = loss.voxels {
            sums.cross_entropy += self.focal(loss, gamma);
            sums.count += sum(&self.counted) * (self.values.len() - loss.first_channel()) as f64;
        }
        match &loss.target {
            Target::Classes => {
                let (lead, total) = self.softmax();
                self.add_cross_entropies(loss, lead, total, sums, each);
            }
            Target::Regions(regions) => {
                let binary =
                    regions.iter().enumerate().map(|(channel, labels)| self.sigmoid(channel, labels)).sum::<f64>();
                if matches!(loss.voxels, VoxelLoss::CrossEntropy) {
                    sums.cross_entropy += binary;
                    // With an ignore label, nnU-Net's `DC_and_BCE_loss` divides by the number of voxels, not voxels
                    // times channels.
                    let per_voxel = if loss.ignore_label.is_some() { 1 } else { self.values.len() };
                    sums.count += sum(&self.counted) * per_voxel as f64;
                }
            }
        }
        let first = loss.first_channel();
        for (class, [intersection, activation, positives]) in sums.dice.iter_mut().enumerate() {
            let y = self.members(&loss.target, first + class);
            let (mut i, mut p) = ([0.0f32; TILE], [0.0f32; TILE]);
            for voxel in 0..TILE {
                p[voxel] = self.values[first + class][voxel] * self.counted[voxel];
                i[voxel] = p[voxel] * y[voxel];
            }
            *activation += sum(&p);
            *intersection += sum(&i);
            *positives += sum(&y);
        }
    }

    /// Adds the cross-entropies of classes, `lead + ln total`, to the sums.
    #[inline(always)]
    fn add_cross_entropies(
        &self,
        loss: &SegmentationLoss,
        mut lead: Lane,
        mut total: Lane,
        sums: &mut LossSums,
        each: &mut [f32],
    ) {
        let is_plain = loss.class_weights.is_empty();
        match loss.voxels {
            VoxelLoss::CrossEntropy if is_plain => {
                for voxel in 0..TILE {
                    lead[voxel] *= self.counted[voxel];
                    total[voxel] = if self.counted[voxel] > 0.0 { total[voxel] } else { 1.0 };
                }
                sums.cross_entropy += sum(&lead) + sum_of_logarithms(&total);
                sums.count += sum(&self.counted);
            }
            VoxelLoss::CrossEntropy | VoxelLoss::TopK { .. } => {
                let weights = self.weights(loss);
                let mut losses = [0.0f32; TILE];
                for voxel in 0..TILE {
                    losses[voxel] = weights[voxel] * (lead[voxel] + LN_2 * log2(total[voxel]));
                }
                if each.is_empty() {
                    sums.cross_entropy += sum(&losses);
                    sums.count += sum(&weights);
                } else {
                    each.copy_from_slice(&losses[..each.len()]);
                }
            }
            VoxelLoss::Focal { .. } | VoxelLoss::None => {}
        }
    }

    /// Replaces activations (logits, if [`SegmentationLoss::needs_logits`]) by the gradient with respect to the logits.
    /// `each` has the losses that [`Tile::activate`] wrote.
    pub fn gradient(&mut self, loss: &SegmentationLoss, coefficients: &LossCoefficients, each: &[f32]) {
        gradient(self, loss, coefficients, each);
    }

    #[inline(always)]
    fn gradient_inlined(&mut self, loss: &SegmentationLoss, coefficients: &LossCoefficients, each: &[f32]) {
        let target = &loss.target;
        if let VoxelLoss::Focal { gamma } = loss.voxels {
            self.focal(loss, gamma);
            if *target == Target::Classes {
                self.softmax();
            } else {
                for channel in 0..self.values.len() {
                    self.sigmoid(channel, &[]);
                }
            }
        }
        let mut projection = [0.0f32; TILE];
        for channel in 0..self.values.len() {
            let y = self.members(target, channel);
            let (p, slope) = (&self.values[channel], &mut self.dice_gradients[channel]);
            for voxel in 0..TILE {
                slope[voxel] = coefficients.dice_slope[channel] * y[voxel] - coefficients.dice_offset[channel];
                projection[voxel] += slope[voxel] * p[voxel];
            }
        }
        let pull = self.pull(loss, coefficients, each);
        let classes = *target == Target::Classes;
        for channel in 0..self.values.len() {
            let y = self.members(target, channel);
            let (p, slope) = (&mut self.values[channel], &self.dice_gradients[channel]);
            for voxel in 0..TILE {
                // Derivatives of softmax and sigmoid.
                let of_softmax = p[voxel] * (slope[voxel] - projection[voxel]);
                let of_sigmoid = p[voxel] * (1.0 - p[voxel]) * slope[voxel];
                let dice = if classes { of_softmax } else { of_sigmoid };
                p[voxel] = self.counted[voxel] * dice + pull[voxel] * (p[voxel] - y[voxel]);
            }
            if let Some(focal) = self.focal.get(channel) {
                for voxel in 0..TILE {
                    p[voxel] += coefficients.voxel_scale * self.counted[voxel] * focal[voxel];
                }
            }
        }
    }

    /// Returns the factor of each voxel's cross-entropy gradient.
    #[inline(always)]
    fn pull(&self, loss: &SegmentationLoss, coefficients: &LossCoefficients, each: &[f32]) -> Lane {
        let mut pull = match loss.voxels {
            VoxelLoss::Focal { .. } | VoxelLoss::None => return [0.0; TILE],
            VoxelLoss::CrossEntropy | VoxelLoss::TopK { .. } => self.weights(loss),
        };
        for pull in &mut pull {
            *pull *= coefficients.voxel_scale;
        }
        if let Some(cutoff) = coefficients.cutoff {
            for (pull, loss) in pull.iter_mut().zip(each) {
                *pull *= cutoff.share(*loss) as f32;
            }
        }
        pull
    }

    /// Returns the class weight of each voxel; 0 for voxels that do not count.
    #[inline(always)]
    fn weights(&self, loss: &SegmentationLoss) -> Lane {
        let mut weights = self.counted;
        if !loss.class_weights.is_empty() {
            for (weight, label) in weights.iter_mut().zip(self.labels) {
                *weight *= loss.class_weights.get(label as usize).copied().unwrap_or(1.0);
            }
        }
        weights
    }

    /// Returns the sum of the focal losses over the voxels and channels that count, and stores the derivatives of all
    /// voxels in `self.focal`.
    ///
    /// Each channel is a binary classification by the sigmoid of its logit. With `p` the probability of the correct
    /// class, the loss is `-(1 - p)^gamma ln p` (Lin et al. 2017).
    #[inline(always)]
    fn focal(&mut self, loss: &SegmentationLoss, gamma: f32) -> f64 {
        let mut total = 0.0;
        for channel in loss.first_channel()..self.values.len() {
            let y = self.members(&loss.target, channel);
            let (logits, slope) = (&self.values[channel], &mut self.focal[channel]);
            let mut losses = [0.0f32; TILE];
            for voxel in 0..TILE {
                let sign = 2.0 * y[voxel] - 1.0;
                let right = sign * logits[voxel];
                let exp = exp2(-LOG2_E * right.abs());
                let (larger, smaller) = (1.0 / (1.0 + exp), exp / (1.0 + exp));
                let (p, rest) = if right > 0.0 { (larger, smaller) } else { (smaller, larger) };
                let logarithm = LN_2 * log2(1.0 + exp) + if right > 0.0 { 0.0 } else { -right };
                let focus = power(rest, gamma);
                losses[voxel] = self.counted[voxel] * focus * logarithm;
                slope[voxel] = -sign * focus * (gamma * p * logarithm + rest);
            }
            total += sum(&losses);
        }
        total
    }

    /// Returns 1 for voxels that count and belong to the channel's class or region, 0 for others.
    #[inline(always)]
    fn members(&self, target: &Target, channel: usize) -> Lane {
        match target {
            Target::Classes => self.labelled(&[channel as i16]),
            Target::Regions(regions) => self.labelled(&regions[channel]),
        }
    }

    /// Returns 1 for voxels that count and have one of these labels, 0 for others.
    #[inline(always)]
    fn labelled(&self, labels: &[i16]) -> Lane {
        let mut among = [0.0f32; TILE];
        for label in labels {
            for ((among, of_voxel), counted) in among.iter_mut().zip(&self.labels).zip(&self.counted) {
                *among = if of_voxel == label { *counted } else { *among };
            }
        }
        among
    }

    /// Computes the softmax over channels. Returns `(lead, total)`; a voxel's cross-entropy is `lead + ln total`.
    #[inline(always)]
    fn softmax(&mut self) -> (Lane, Lane) {
        let mut largest = [f32::NEG_INFINITY; TILE];
        for lane in &self.values {
            for voxel in 0..TILE {
                largest[voxel] = if lane[voxel] > largest[voxel] { lane[voxel] } else { largest[voxel] };
            }
        }
        let (mut total, mut lead) = ([0.0f32; TILE], [0.0f32; TILE]);
        for (channel, lane) in self.values.iter_mut().enumerate() {
            for voxel in 0..TILE {
                let below = lane[voxel] - largest[voxel];
                lead[voxel] -= if self.labels[voxel] == channel as i16 { below } else { 0.0 };
                lane[voxel] = exp2(LOG2_E * below);
                total[voxel] += lane[voxel];
            }
        }
        for lane in &mut self.values {
            for voxel in 0..TILE {
                lane[voxel] /= total[voxel];
            }
        }
        (lead, total)
    }

    /// Computes the sigmoid of one channel, whose region has these labels. Returns the sum of the binary
    /// cross-entropies.
    #[inline(always)]
    fn sigmoid(&mut self, channel: usize, labels: &[i16]) -> f64 {
        let y = self.labelled(labels);
        let lane = &mut self.values[channel];
        let (mut linear, mut total) = ([0.0f32; TILE], [0.0f32; TILE]);
        for voxel in 0..TILE {
            let logit = lane[voxel];
            let positive = if logit > 0.0 { logit } else { 0.0 };
            linear[voxel] = self.counted[voxel] * (positive - logit * y[voxel]);
            // The exponent is minus the logit's absolute value, so it cannot overflow.
            let exp = exp2(LOG2_E * (logit - 2.0 * positive));
            total[voxel] = 1.0 + self.counted[voxel] * exp;
            lane[voxel] = if logit > 0.0 { 1.0 } else { exp } / (1.0 + exp);
        }
        sum(&linear) + sum_of_logarithms(&total)
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn activate(tile: &mut Tile, loss: &SegmentationLoss, sums: &mut LossSums, each: &mut [f32]) {
    tile.activate_inlined(loss, sums, each);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn gradient(tile: &mut Tile, loss: &SegmentationLoss, coefficients: &LossCoefficients, each: &[f32]) {
    tile.gradient_inlined(loss, coefficients, each);
}

/// Sums in f64 with eight parallel accumulators.
#[inline(always)]
fn sum(lane: &Lane) -> f64 {
    let mut sums = [0.0f64; 8];
    for eight in lane.as_chunks::<8>().0 {
        for (sum, value) in sums.iter_mut().zip(eight) {
            *sum += f64::from(*value);
        }
    }
    sums.iter().sum()
}

/// Computes `Σ ln x` as the logarithm of a product. Every `x` is between 1 and 10⁴, so products cannot overflow f64.
#[inline(always)]
fn sum_of_logarithms(lane: &Lane) -> f64 {
    let mut products = [1.0f64; 8];
    for eight in lane.as_chunks::<8>().0 {
        for (product, value) in products.iter_mut().zip(eight) {
            *product *= f64::from(*value);
        }
    }
    products.iter().product::<f64>().ln()
}
