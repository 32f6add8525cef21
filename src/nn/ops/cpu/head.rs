//! Segmentation head: every voxel's features times a small matrix, in one pass forward and one backward.
//!
//! Logits are always f32, because the loss exponentiates their differences.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::buffer_pool::{Buffer, buffer};
use super::element::ActivationElement;
use super::tensor::{contiguous, dims, values};
use crate::ops::HeadGradients;

/// Number of voxels per task.
const BLOCK: usize = 2048;
/// Number of voxels computed together, with transposed features: four AVX-512 registers.
const TILE: usize = 64;

/// Computes logits `(n, z, y, x, k)` from features `(n, z, y, x, c)`, weights `(k, c, 1, 1, 1)` and bias `(k)`.
pub fn forward<T: ActivationElement>(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x.clone()), contiguous(weight.clone()), contiguous(bias.clone()));
    let [n, depth, height, width, c] = dims(&x);
    let [k, ..] = dims::<5>(&weight);
    let (weights, bias) = (values::<f32>(&weight), values::<f32>(&bias));
    let mut logits = buffer::<f32>(n * depth * height * width * k);
    let blocks = logits.par_chunks_mut(BLOCK * k).zip(values::<T>(&x).par_chunks(BLOCK * c));
    blocks.for_each(|(logits, x)| block_forward(logits, x, weights, bias));
    logits.into_tensor([n, depth, height, width, k])
}

/// Computes the logits of a block.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn block_forward<T: ActivationElement>(logits: &mut [f32], x: &[T], weights: &[f32], bias: &[f32]) {
    let k = bias.len();
    let c = weights.len() / k;
    let (mut features, mut sums) = (vec![0.0; c * TILE], vec![0.0; TILE]);
    for (logits, x) in logits.chunks_mut(TILE * k).zip(x.chunks(TILE * c)) {
        transpose(x, c, &mut features);
        for logit in 0..k {
            sums.fill(bias[logit]);
            dot(&weights[logit * c..(logit + 1) * c], &features, &mut sums);
            for (row, sum) in logits.chunks_exact_mut(k).zip(&sums) {
                row[logit] = *sum;
            }
        }
    }
}

/// Transposes rows of `c` features to rows of [`TILE`] voxels. Entries of missing voxels are left unchanged.
#[inline(always)]
fn transpose<T: ActivationElement>(x: &[T], c: usize, features: &mut [f32]) {
    for (voxel, row) in x.chunks_exact(c).enumerate() {
        for (channel, value) in row.iter().enumerate() {
            features[channel * TILE + voxel] = value.widen();
        }
    }
}

/// Adds to each voxel's sum the dot product of its features with the weights.
#[inline(always)]
fn dot(weights: &[f32], features: &[f32], sums: &mut [f32]) {
    let len = sums.len();
    for (weight, features) in weights.iter().zip(features.chunks_exact(len)) {
        for i in 0..len {
            sums[i] += weight * features[i];
        }
    }
}

/// Computes the gradients of [`forward`].
pub fn backward<T: ActivationElement>(x: &FlexTensor, weight: &FlexTensor, grad: &FlexTensor) -> HeadGradients<Flex> {
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
        .map(|((d_x, x), grad)| block_backward(d_x, x, weights, grad, c, k))
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

/// Computes the block's input gradient and returns its contributions to the gradients of weight and bias.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn block_backward<T: ActivationElement>(
    d_x: &mut [T],
    x: &[T],
    weights: &[f32],
    grad: &[f32],
    c: usize,
    k: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (mut d_weight, mut d_bias) = (vec![0.0f32; k * c], vec![0.0f32; k]);
    let (mut row, mut features) = (vec![0.0f32; c], vec![0.0f32; c]);
    let (row, features) = (&mut row[..c], &mut features[..c]);
    for ((d_x, x), grad) in d_x.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(grad.chunks_exact(k)) {
        for i in 0..c {
            row[i] = 0.0;
            features[i] = x[i].widen();
        }
        for logit in 0..k {
            let grad = grad[logit];
            d_bias[logit] += grad;
            let (weights, d_weight) = (&weights[logit * c..][..c], &mut d_weight[logit * c..][..c]);
            for i in 0..c {
                row[i] += grad * weights[i];
                d_weight[i] += grad * features[i];
            }
        }
        for i in 0..c {
            d_x[i] = T::narrow(row[i]);
        }
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
