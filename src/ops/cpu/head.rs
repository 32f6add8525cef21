//! The convolution that ends a decoder stage: every voxel's features times a small matrix, in one pass each way.
//!
//! Logits are f32 whatever the features are, because the loss takes differences of exponentials of them.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::element::Element;
use super::pool::{Buffer, buffer};
use super::{HeadGradients, contiguous, dims, values};
use crate::simd::widest;

/// Voxels one task handles.
const BLOCK: usize = 2048;
/// Logits that are summed up together: an AVX-512 register.
const LANES: usize = 16;

/// `(n, z, y, x, c)` times `(k, c, 1, 1, 1)` plus `(k)`: `(n, z, y, x, k)`.
pub fn forward<T: Element>(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x.clone()), contiguous(weight.clone()), contiguous(bias.clone()));
    let [n, depth, height, width, c] = dims(&x);
    let [k, ..] = dims::<5>(&weight);
    let groups = Groups::new(values(&weight), values(&bias), k, c);
    let mut logits = buffer::<f32>(n * depth * height * width * k);
    logits.par_chunks_mut(BLOCK * k).zip(values::<T>(&x).par_chunks(BLOCK * c)).for_each(|(logits, x)| {
        widest(|| {
            for (logits, x) in logits.chunks_exact_mut(k).zip(x.chunks_exact(c)) {
                for (logits, (weights, bias)) in logits.chunks_mut(LANES).zip(groups.iter()) {
                    let mut sums = *bias;
                    for (x, weights) in x.iter().zip(weights) {
                        let x = x.widen();
                        sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += x * weight);
                    }
                    logits.copy_from_slice(&sums[..logits.len()]);
                }
            }
        });
    });
    logits.into_tensor([n, depth, height, width, k])
}

/// Gradients of [`forward`].
pub fn backward<T: Element>(x: &FlexTensor, weight: &FlexTensor, grad: &FlexTensor) -> HeadGradients<Flex> {
    let (x, weight, grad) = (contiguous(x.clone()), contiguous(weight.clone()), contiguous(grad.clone()));
    let shape: [usize; 5] = dims(&x);
    let c = shape[4];
    let [k, ..] = dims::<5>(&weight);
    let weights = values::<f32>(&weight);
    let mut d_x = buffer::<T>(values::<T>(&x).len());
    let blocks: Vec<(Vec<f32>, Vec<f32>)> = d_x
        .par_chunks_mut(BLOCK * c)
        .zip(values::<T>(&x).par_chunks(BLOCK * c))
        .zip(values::<f32>(&grad).par_chunks(BLOCK * k))
        .map(|((d_x, x), grad)| widest(|| block_backward(d_x, x, weights, grad, c, k)))
        .collect();
    let (d_weight, d_bias) = blocks.iter().fold((vec![0.0; k * c], vec![0.0; k]), |(mut weight, mut bias), block| {
        add(&mut weight, &block.0);
        add(&mut bias, &block.1);
        (weight, bias)
    });
    HeadGradients {
        input: d_x.into_tensor(shape),
        weight: narrowed(&d_weight).into_tensor([k, c, 1, 1, 1]),
        bias: narrowed(&d_bias).into_tensor([k]),
    }
}

/// The weights with the logits along the lanes, so that a feature is multiplied with many of them at once.
struct Groups {
    /// Per group of logits, `(c)` rows of lanes; lanes without a logit are 0.
    weights: Vec<Vec<[f32; LANES]>>,
    bias: Vec<[f32; LANES]>,
}

impl Groups {
    fn new(weight: &[f32], bias: &[f32], k: usize, c: usize) -> Self {
        let lanes = |first: usize, value: &dyn Fn(usize) -> f32| -> [f32; LANES] {
            std::array::from_fn(|lane| if first + lane < k { value(first + lane) } else { 0.0 })
        };
        let firsts = || (0..k).step_by(LANES);
        let rows = |first| (0..c).map(|channel| lanes(first, &|logit| weight[logit * c + channel])).collect();
        Self { weights: firsts().map(rows).collect(), bias: firsts().map(|first| lanes(first, &|l| bias[l])).collect() }
    }

    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (&[[f32; LANES]], &[f32; LANES])> {
        self.weights.iter().map(Vec::as_slice).zip(&self.bias)
    }
}

/// Fills the block's part of the input gradient, and returns its parts of those of weight and bias.
#[inline(always)]
fn block_backward<T: Element>(
    d_x: &mut [T],
    x: &[T],
    weights: &[f32],
    grad: &[f32],
    c: usize,
    k: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut d_weight, mut d_bias) = (vec![0.0f32; k * c], vec![0.0f32; k]);
    let (mut row, mut features) = (vec![0.0f32; c], vec![0.0f32; c]);
    for ((d_x, x), grad) in d_x.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(grad.chunks_exact(k)) {
        row.fill(0.0);
        features.iter_mut().zip(x).for_each(|(feature, x)| *feature = x.widen());
        let logits = grad.iter().zip(weights.chunks_exact(c)).zip(d_weight.chunks_exact_mut(c)).zip(&mut d_bias);
        for (((grad, weights), d_weight), d_bias) in logits {
            *d_bias += grad;
            for ((row, weight), (d_weight, feature)) in
                row.iter_mut().zip(weights).zip(d_weight.iter_mut().zip(&features))
            {
                *row += grad * weight;
                *d_weight += grad * feature;
            }
        }
        d_x.iter_mut().zip(&row).for_each(|(d_x, row)| *d_x = T::narrow(*row));
    }
    (d_weight, d_bias)
}

fn add(total: &mut [f64], part: &[f32]) {
    total.iter_mut().zip(part).for_each(|(total, part)| *total += f64::from(*part));
}

fn narrowed(values: &[f64]) -> Buffer<f32> {
    let mut narrow = buffer::<f32>(values.len());
    narrow.iter_mut().zip(values).for_each(|(narrow, value)| *narrow = *value as f32);
    narrow
}
