//! The arithmetic of the loss on a tile: a few voxels, channel by channel, so that every loop runs over voxels and is
//! compiled to the machine's widest vectors.

use std::f32::consts::LOG2_E;

use multiversion::multiversion;

use super::segmentation::{LossSums, Target};
use crate::math::exp2;

/// Voxels of a tile.
pub const TILE: usize = 64;

type Lane = [f32; TILE];

/// Values and labels of [`TILE`] voxels, or fewer: what is missing counts for nothing.
pub struct Tile {
    /// Logits or activations, per channel.
    values: Vec<Lane>,
    /// What [`Tile::gradient`] needs between its passes, per channel.
    slopes: Vec<Lane>,
    labels: [i16; TILE],
    /// 1 for voxels that count, 0 for others.
    counted: Lane,
}

/// The derivative of the loss with respect to the activation `p` of a voxel is `slope * y - offset`, but for that of the
/// cross-entropy, whose derivative with respect to the logit is `cross_entropy * (p - y)`.
pub struct Slopes {
    /// Per channel.
    pub slope: Vec<f32>,
    /// Per channel.
    pub offset: Vec<f32>,
    pub cross_entropy: f32,
}

impl Tile {
    /// An empty tile.
    pub fn new(channels: usize) -> Self {
        Self {
            values: vec![[0.0; TILE]; channels],
            slopes: vec![[0.0; TILE]; channels],
            labels: [0; TILE],
            counted: [0.0; TILE],
        }
    }

    /// Takes values `(voxels, channels)` and the voxels' labels.
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

    /// Gives the values back, `(voxels, channels)`.
    pub fn store(&self, values: &mut [f32]) {
        let channels = self.values.len();
        for (channel, lane) in self.values.iter().enumerate() {
            for (value, voxel) in values.chunks_exact_mut(channels).zip(lane) {
                value[channel] = *voxel;
            }
        }
    }

    /// Turns logits into softmax or sigmoid, and adds the sums of voxels that count.
    pub fn activate(&mut self, target: &Target, sums: &mut LossSums) {
        activate(self, target, sums);
    }

    #[inline(always)]
    fn activate_inlined(&mut self, target: &Target, sums: &mut LossSums) {
        let voxels: f32 = self.counted.iter().sum();
        let first = match target {
            Target::Classes => {
                sums.count += f64::from(voxels);
                sums.cross_entropy += self.softmax();
                1
            }
            Target::Regions(regions) => {
                sums.count += f64::from(voxels) * self.values.len() as f64;
                for (channel, labels) in regions.iter().enumerate() {
                    sums.cross_entropy += self.sigmoid(channel, labels);
                }
                0
            }
        };
        for (class, [intersection, activation, positives]) in sums.dice.iter_mut().enumerate() {
            let y = self.members(target, first + class);
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

    /// Turns activations into the gradient with respect to the logits.
    pub fn gradient(&mut self, target: &Target, slopes: &Slopes) {
        gradient(self, target, slopes);
    }

    #[inline(always)]
    fn gradient_inlined(&mut self, target: &Target, slopes: &Slopes) {
        let mut projection = [0.0f32; TILE];
        for channel in 0..self.values.len() {
            let y = self.members(target, channel);
            let (p, slope) = (&self.values[channel], &mut self.slopes[channel]);
            for voxel in 0..TILE {
                slope[voxel] = slopes.slope[channel] * y[voxel] - slopes.offset[channel];
                projection[voxel] += slope[voxel] * p[voxel];
            }
        }
        let classes = *target == Target::Classes;
        for channel in 0..self.values.len() {
            let y = self.members(target, channel);
            let (p, slope) = (&mut self.values[channel], &self.slopes[channel]);
            for voxel in 0..TILE {
                // The derivatives of the softmax and of the sigmoid.
                let of_softmax = p[voxel] * (slope[voxel] - projection[voxel]);
                let of_sigmoid = p[voxel] * (1.0 - p[voxel]) * slope[voxel];
                let dice = if classes { of_softmax } else { of_sigmoid };
                p[voxel] = self.counted[voxel] * (dice + slopes.cross_entropy * (p[voxel] - y[voxel]));
            }
        }
    }

    /// 1 for voxels that count and belong to the channel's class or region, 0 for others.
    #[inline(always)]
    fn members(&self, target: &Target, channel: usize) -> Lane {
        match target {
            Target::Classes => self.labelled(&[channel as i16]),
            Target::Regions(regions) => self.labelled(&regions[channel]),
        }
    }

    /// 1 for voxels that count and have one of these labels, 0 for others.
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

    /// Softmax over the channels; gives the sum of the cross-entropies.
    #[inline(always)]
    fn softmax(&mut self) -> f64 {
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
        for voxel in 0..TILE {
            lead[voxel] *= self.counted[voxel];
            total[voxel] = if self.counted[voxel] > 0.0 { total[voxel] } else { 1.0 };
        }
        sum(&lead) + sum_of_logarithms(&total)
    }

    /// Sigmoid of one channel, the region of these labels; gives the sum of the binary cross-entropies.
    #[inline(always)]
    fn sigmoid(&mut self, channel: usize, labels: &[i16]) -> f64 {
        let y = self.labelled(labels);
        let lane = &mut self.values[channel];
        let (mut linear, mut total) = ([0.0f32; TILE], [0.0f32; TILE]);
        for voxel in 0..TILE {
            let logit = lane[voxel];
            let positive = if logit > 0.0 { logit } else { 0.0 };
            linear[voxel] = self.counted[voxel] * (positive - logit * y[voxel]);
            // Of the logit's negative absolute value, which cannot overflow.
            let exp = exp2(LOG2_E * (logit - 2.0 * positive));
            total[voxel] = 1.0 + self.counted[voxel] * exp;
            lane[voxel] = if logit > 0.0 { 1.0 } else { exp } / (1.0 + exp);
        }
        sum(&linear) + sum_of_logarithms(&total)
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn activate(tile: &mut Tile, target: &Target, sums: &mut LossSums) {
    tile.activate_inlined(target, sums);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn gradient(tile: &mut Tile, target: &Target, slopes: &Slopes) {
    tile.gradient_inlined(target, slopes);
}

/// Sum in double precision, in lanes side by side.
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

/// `Σ ln x`, as the logarithm of a product; no `x` is below 1, and products of 64 values up to 10⁴ are far from `f64`'s
/// largest.
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
