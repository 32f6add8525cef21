//! Instance norm and leaky ReLU in one: two passes over memory forward, two backward, nothing saved but the statistics.
//!
//! Channels-last, a voxel is a row of `c` values, so every loop below runs over rows with one accumulator per channel
//! and vectorises. Statistics are Welford's, by blocks that fit the cache, combined in f64 in a fixed order
//! (Chan, Golub, LeVeque 1983), so a large mean costs no precision and threads do not change the result.

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{NormGradients, NormParams, buffer, contiguous, dims, tensor, values};

/// Values one task handles: 64 KiB, which stays in a core's L2 cache between the two loops over it.
const BLOCK_VALUES: usize = 16 * 1024;

/// `(y, statistics)`; statistics are mean and 1 / sqrt(variance + eps), `(2, n, c)`.
pub fn forward(x: &FlexTensor, gamma: &FlexTensor, beta: &FlexTensor, params: NormParams) -> (FlexTensor, FlexTensor) {
    let (x, gamma, beta) = (contiguous(x.clone()), contiguous(gamma.clone()), contiguous(beta.clone()));
    let shape = Shape::of(&x);
    let statistics = statistics(values(&x), shape, params.eps);
    let mut y = buffer(values(&x).len());
    for sample in 0..shape.n {
        let (mean, rstd) = shape.of_sample(&statistics, sample);
        let scale: Vec<f32> = rstd.iter().zip(values(&gamma)).map(|(rstd, gamma)| rstd * gamma).collect();
        let shift: Vec<f32> =
            mean.iter().zip(&scale).zip(values(&beta)).map(|((mean, scale), beta)| beta - mean * scale).collect();
        let range = shape.sample_range(sample);
        y[range.clone()].par_chunks_mut(shape.block()).zip(values(&x)[range].par_chunks(shape.block())).for_each(
            |(y, x)| {
                for (y, x) in y.chunks_exact_mut(shape.c).zip(x.chunks_exact(shape.c)) {
                    scale_shift_activate(y, x, &scale, &shift, params.negative_slope);
                }
            },
        );
    }
    (tensor(y, dims::<5>(&x)), tensor(statistics, [2, shape.n, shape.c]))
}

/// Gradients of [`forward`]. `grad`'s buffer becomes the input gradient's when nobody else holds it.
pub fn backward(
    x: &FlexTensor,
    statistics: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    grad: FlexTensor,
    params: NormParams,
) -> NormGradients<Flex> {
    let (x, gamma, beta) = (contiguous(x.clone()), contiguous(gamma.clone()), contiguous(beta.clone()));
    let mut grad = contiguous(grad);
    let shape = Shape::of(&x);
    let statistics = contiguous(statistics.clone());
    let (mut d_gamma, mut d_beta) = (vec![0.0; shape.c], vec![0.0; shape.c]);
    let x_values = values(&x);

    let in_place = grad.is_unique() && values(&grad).len() == grad.storage::<f32>().len();
    let mut fresh = if in_place { Vec::new() } else { values(&grad).to_vec() };
    let d_x: &mut [f32] = if in_place { grad.storage_mut() } else { &mut fresh };

    for sample in 0..shape.n {
        let (mean, rstd) = shape.of_sample(values(&statistics), sample);
        let range = shape.sample_range(sample);
        let x = &x_values[range.clone()];
        let d_x = &mut d_x[range];
        let coefficients = Affine { mean, rstd, gamma: values(&gamma), beta: values(&beta) };

        let sums = gradient_sums(x, d_x, &coefficients, params.negative_slope, shape);
        let voxels = shape.voxels as f64;
        let mut mean_grad = vec![0.0; shape.c];
        let mut mean_projected = vec![0.0; shape.c];
        for channel in 0..shape.c {
            let (sum, projected) = (sums[channel], sums[shape.c + channel]);
            d_beta[channel] += sum as f32;
            d_gamma[channel] += projected as f32;
            mean_grad[channel] = (sum / voxels) as f32;
            mean_projected[channel] = (projected / voxels) as f32;
        }
        d_x.par_chunks_mut(shape.block()).zip(x.par_chunks(shape.block())).for_each(|(d_x, x)| {
            for (d_x, x) in d_x.chunks_exact_mut(shape.c).zip(x.chunks_exact(shape.c)) {
                for c in 0..shape.c {
                    let (normalised, grad) = coefficients.undo(c, x[c], d_x[c], params.negative_slope);
                    d_x[c] = (grad - mean_grad[c] - normalised * mean_projected[c])
                        * (coefficients.gamma[c] * coefficients.rstd[c]);
                }
            }
        });
    }
    let input = if in_place { grad } else { tensor(fresh, dims::<5>(&x)) };
    NormGradients { input, gamma: tensor(d_gamma, [shape.c]), beta: tensor(d_beta, [shape.c]) }
}

/// Extents of an activation, with its voxels as one axis.
#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    voxels: usize,
    c: usize,
}

impl Shape {
    fn of(x: &FlexTensor) -> Self {
        let [n, z, y, x, c] = dims(x);
        Self { n, voxels: z * y * x, c }
    }

    fn sample_range(&self, sample: usize) -> std::ops::Range<usize> {
        let len = self.voxels * self.c;
        sample * len..(sample + 1) * len
    }

    /// Values of a block: whole rows, a fixed number of them.
    fn block(&self) -> usize {
        (BLOCK_VALUES / self.c).max(1) * self.c
    }

    /// Mean and reciprocal standard deviation of one sample.
    fn of_sample<'a>(&self, statistics: &'a [f32], sample: usize) -> (&'a [f32], &'a [f32]) {
        let (mean, rstd) = statistics.split_at(self.n * self.c);
        let range = sample * self.c..(sample + 1) * self.c;
        (&mean[range.clone()], &rstd[range])
    }
}

/// The affine map of one sample's norm.
struct Affine<'a> {
    mean: &'a [f32],
    rstd: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
}

impl Affine<'_> {
    /// The normalised value of channel `c` and the gradient before the leaky ReLU.
    #[inline(always)]
    fn undo(&self, c: usize, x: f32, grad: f32, slope: f32) -> (f32, f32) {
        let normalised = (x - self.mean[c]) * self.rstd[c];
        let activation = normalised * self.gamma[c] + self.beta[c];
        (normalised, if activation < 0.0 { grad * slope } else { grad })
    }
}

#[inline(always)]
fn scale_shift_activate(y: &mut [f32], x: &[f32], scale: &[f32], shift: &[f32], slope: f32) {
    for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
        let value = x * scale + shift;
        *y = if value < 0.0 { value * slope } else { value };
    }
}

/// Mean and 1 / sqrt(variance + eps) of each sample and channel, `(2, n, c)`.
fn statistics(x: &[f32], shape: Shape, eps: f32) -> Vec<f32> {
    let mut statistics = vec![0.0; 2 * shape.n * shape.c];
    let (means, rstds) = statistics.split_at_mut(shape.n * shape.c);
    for sample in 0..shape.n {
        let blocks: Vec<(usize, Vec<f32>)> = x[shape.sample_range(sample)]
            .par_chunks(shape.block())
            .map(|block| (block.len() / shape.c, block_moments(block, shape.c)))
            .collect();
        let mut count = 0.0;
        let (mut mean, mut m2) = (vec![0.0f64; shape.c], vec![0.0f64; shape.c]);
        for (rows, moments) in &blocks {
            let rows = *rows as f64;
            let total = count + rows;
            for c in 0..shape.c {
                let delta = f64::from(moments[c]) - mean[c];
                mean[c] += delta * rows / total;
                m2[c] += f64::from(moments[shape.c + c]) + delta * delta * count * rows / total;
            }
            count = total;
        }
        for c in 0..shape.c {
            means[sample * shape.c + c] = mean[c] as f32;
            rstds[sample * shape.c + c] = (1.0 / (m2[c] / count + f64::from(eps)).sqrt()) as f32;
        }
    }
    statistics
}

/// Mean and sum of squared deviations of each channel of a block, `(2, c)`.
fn block_moments(block: &[f32], c: usize) -> Vec<f32> {
    let rows = (block.len() / c) as f32;
    let mut moments = vec![0.0; 2 * c];
    let (mean, m2) = moments.split_at_mut(c);
    for row in block.chunks_exact(c) {
        for (mean, x) in mean.iter_mut().zip(row) {
            *mean += x;
        }
    }
    mean.iter_mut().for_each(|mean| *mean /= rows);
    for row in block.chunks_exact(c) {
        for ((m2, mean), x) in m2.iter_mut().zip(mean.iter()).zip(row) {
            let deviation = x - mean;
            *m2 += deviation * deviation;
        }
    }
    moments
}

/// Sums over the voxels of one sample of the gradient and of gradient times normalised value, `(2, c)`.
fn gradient_sums(x: &[f32], grad: &[f32], affine: &Affine, slope: f32, shape: Shape) -> Vec<f64> {
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(shape.block())
        .zip(grad.par_chunks(shape.block()))
        .map(|(x, grad)| {
            let mut sums = vec![0.0f32; 2 * shape.c];
            let (sum, projected) = sums.split_at_mut(shape.c);
            for (x, grad) in x.chunks_exact(shape.c).zip(grad.chunks_exact(shape.c)) {
                for c in 0..shape.c {
                    let (normalised, grad) = affine.undo(c, x[c], grad[c], slope);
                    sum[c] += grad;
                    projected[c] += grad * normalised;
                }
            }
            sums
        })
        .collect();
    let mut total = vec![0.0f64; 2 * shape.c];
    for block in &blocks {
        for (total, block) in total.iter_mut().zip(block) {
            *total += f64::from(*block);
        }
    }
    total
}
