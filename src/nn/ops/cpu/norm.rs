//! Fused instance norm and leaky ReLU: two passes over memory forward, two backward. Only the statistics are saved.
//!
//! In channels-last layout, a voxel is a row of `c` values and a block of rows is one contiguous run. The channels'
//! coefficients are repeated to at least [`PERIOD`] values, so that the loops over a run have long trip counts for any
//! `c` and vectorize. Statistics are f32 sums of deviations from the block's first row, combined over the blocks in f64
//! in a fixed order (Chan, Golub, LeVeque 1983), so a large mean costs no precision and the result does not depend on
//! the number of threads. Samples are processed one at a time, so that the second pass finds the sample in the
//! last-level cache.

use std::ops::Range;

use burn::backend::Flex;
use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::buffer_pool::{Buffer, buffer};
use super::element::ActivationElement;
use super::tensor::{contiguous, dims, values};
use crate::ops::{NormGradients, NormParams};

/// Number of values per task: 64 KiB of f32, which stays in a core's L2 cache.
const BLOCK_VALUES: usize = 16 * 1024;
/// Minimum length of the repeated coefficients: sixteen AVX-512 registers.
const PERIOD: usize = 256;

/// Returns `(y, statistics)`; statistics are mean and 1 / sqrt(variance + eps), `(2, n, c)` in f32.
pub fn forward<T: ActivationElement>(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    params: NormParams,
) -> (FlexTensor, FlexTensor) {
    let (x, gamma, beta) = (contiguous(x.clone()), contiguous(gamma.clone()), contiguous(beta.clone()));
    let shape = Shape::new(&x);
    let x_values = values::<T>(&x);
    let mut statistics = buffer::<f32>(2 * shape.n * shape.c);
    let mut y = buffer::<T>(x_values.len());
    for sample in 0..shape.n {
        let range = shape.sample_range(sample);
        let x = &x_values[range.clone()];
        let (mean, rstd) = shape.sample_statistics_mut(&mut statistics, sample);
        moments(x, shape.c, params.eps, mean, rstd);
        let scale: Vec<f32> = rstd.iter().zip(values::<f32>(&gamma)).map(|(rstd, gamma)| rstd * gamma).collect();
        let shift = mean.iter().zip(&scale).zip(values::<f32>(&beta)).map(|((mean, scale), beta)| beta - mean * scale);
        let (shift, scale) = (repeat(&shift.collect::<Vec<f32>>()), repeat(&scale));
        y[range].par_chunks_mut(shape.block()).zip(x.par_chunks(shape.block())).for_each(|(y, x)| {
            scale_shift_activate(y, x, &scale, &shift, params.negative_slope);
        });
    }
    (y.into_tensor(dims::<5>(&x)), statistics.into_tensor([2, shape.n, shape.c]))
}

/// Computes the gradients of [`forward`]. The input gradient reuses the memory of `grad` if it is not shared.
pub fn backward<T: ActivationElement>(
    x: &FlexTensor,
    statistics: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    grad: FlexTensor,
    params: NormParams,
) -> NormGradients<Flex> {
    let (x, gamma, beta) = (contiguous(x.clone()), contiguous(gamma.clone()), contiguous(beta.clone()));
    let mut grad = contiguous(grad);
    let shape = Shape::new(&x);
    let statistics = contiguous(statistics.clone());
    let (mut d_gamma, mut d_beta) = (vec![0.0f64; shape.c], vec![0.0f64; shape.c]);
    let x_values = values::<T>(&x);

    let in_place = grad.is_unique() && values::<T>(&grad).len() == grad.storage::<T>().len();
    let mut fresh = (!in_place).then(|| {
        let mut copy = buffer::<T>(x_values.len());
        copy.copy_from_slice(values(&grad));
        copy
    });
    let d_x: &mut [T] = match &mut fresh {
        Some(fresh) => fresh,
        None => grad.storage_mut(),
    };

    for sample in 0..shape.n {
        let (mean, rstd) = shape.sample_statistics(values(&statistics), sample);
        let range = shape.sample_range(sample);
        let x = &x_values[range.clone()];
        let d_x = &mut d_x[range];
        let norm = Norm::new(mean, rstd, values(&gamma), values(&beta), params.negative_slope);

        let sums = gradient_sums(x, d_x, &norm, shape);
        let voxels = shape.voxels as f64;
        let means: Vec<f32> = sums.iter().map(|sum| (sum / voxels) as f32).collect();
        for channel in 0..shape.c {
            d_beta[channel] += sums[channel];
            d_gamma[channel] += sums[shape.c + channel];
        }
        let (mean_grad, mean_projected) = (repeat(&means[..shape.c]), repeat(&means[shape.c..]));
        d_x.par_chunks_mut(shape.block()).zip(x.par_chunks(shape.block())).for_each(|(d_x, x)| {
            input_gradient(d_x, x, &norm, &mean_grad, &mean_projected);
        });
    }
    let input = match fresh {
        Some(fresh) => fresh.into_tensor(dims::<5>(&x)),
        None => grad,
    };
    NormGradients { input, gamma: narrowed(&d_gamma), beta: narrowed(&d_beta) }
}

/// Shape of an activation with its voxels as one axis.
#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    voxels: usize,
    c: usize,
}

impl Shape {
    fn new(x: &FlexTensor) -> Self {
        let [n, z, y, x, c] = dims(x);
        Self { n, voxels: z * y * x, c }
    }

    fn sample_range(&self, sample: usize) -> Range<usize> {
        let len = self.voxels * self.c;
        sample * len..(sample + 1) * len
    }

    /// Number of values per block, a fixed number of whole rows.
    fn block(&self) -> usize {
        block(self.c)
    }

    /// Returns mean and reciprocal standard deviation of one sample.
    fn sample_statistics<'a>(&self, statistics: &'a [f32], sample: usize) -> (&'a [f32], &'a [f32]) {
        let (mean, rstd) = statistics.split_at(self.n * self.c);
        let range = sample * self.c..(sample + 1) * self.c;
        (&mean[range.clone()], &rstd[range])
    }

    fn sample_statistics_mut<'a>(
        &self,
        statistics: &'a mut Buffer<f32>,
        sample: usize,
    ) -> (&'a mut [f32], &'a mut [f32]) {
        let (mean, rstd) = statistics.split_at_mut(self.n * self.c);
        let range = sample * self.c..(sample + 1) * self.c;
        (&mut mean[range.clone()], &mut rstd[range])
    }
}

/// Number of values per block of rows of `c` values.
fn block(c: usize) -> usize {
    (BLOCK_VALUES / c).max(1) * c
}

/// Repeats `(c)` values to the smallest multiple of `c` that is at least [`PERIOD`].
fn repeat(values: &[f32]) -> Vec<f32> {
    values.repeat(PERIOD.div_ceil(values.len()))
}

/// Reduces sums by position within the period to sums per channel.
fn fold(by_place: &[f32], channels: &mut [f32]) {
    for places in by_place.chunks_exact(channels.len()) {
        channels.iter_mut().zip(places).for_each(|(sum, place)| *sum += place);
    }
}

/// Computes `leaky_relu(x * scale + shift)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn scale_shift_activate<T: ActivationElement>(y: &mut [T], x: &[T], scale: &[f32], shift: &[f32], slope: f32) {
    for (y, x) in y.chunks_mut(scale.len()).zip(x.chunks(scale.len())) {
        let len = y.len();
        let (x, scale, shift) = (&x[..len], &scale[..len], &shift[..len]);
        for i in 0..len {
            let value = x[i].widen() * scale[i] + shift[i];
            y[i] = T::narrow(if value < 0.0 { value * slope } else { value });
        }
    }
}

/// Computes mean and 1 / sqrt(variance + eps) of each channel of a sample.
fn moments<T: ActivationElement>(x: &[T], c: usize, eps: f32, means: &mut [f32], rstds: &mut [f32]) {
    let blocks: Vec<(usize, Vec<f32>)> =
        x.par_chunks(block(c)).map(|block| (block.len() / c, block_moments(block, c))).collect();
    let mut count = 0.0;
    let (mut mean, mut m2) = (vec![0.0f64; c], vec![0.0f64; c]);
    for (rows, moments) in &blocks {
        let rows = *rows as f64;
        let total = count + rows;
        for channel in 0..c {
            let delta = f64::from(moments[channel]) - mean[channel];
            mean[channel] += delta * rows / total;
            m2[channel] += f64::from(moments[c + channel]) + delta * delta * count * rows / total;
        }
        count = total;
    }
    for channel in 0..c {
        means[channel] = mean[channel] as f32;
        rstds[channel] = (1.0 / (m2[channel] / count + f64::from(eps)).sqrt()) as f32;
    }
}

/// Computes mean and sum of squared deviations of each channel of a block, `(2, c)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn block_moments<T: ActivationElement>(block: &[T], c: usize) -> Vec<f32> {
    let rows = (block.len() / c) as f32;
    // Deviations from a value near the mean keep rounding errors small for any mean.
    let first: Vec<f32> = block[..c].iter().map(|value| value.widen()).collect();
    let origin = repeat(&first);
    let (mut sums, mut squares) = (vec![0.0f32; origin.len()], vec![0.0f32; origin.len()]);
    for x in block.chunks(origin.len()) {
        let len = x.len();
        let (origin, sums, squares) = (&origin[..len], &mut sums[..len], &mut squares[..len]);
        for i in 0..len {
            let deviation = x[i].widen() - origin[i];
            sums[i] += deviation;
            squares[i] += deviation * deviation;
        }
    }
    let mut moments = vec![0.0; 2 * c];
    let (mean, m2) = moments.split_at_mut(c);
    fold(&sums, mean);
    fold(&squares, m2);
    for ((mean, m2), first) in mean.iter_mut().zip(m2).zip(first) {
        *m2 = (*m2 - *mean * *mean / rows).max(0.0);
        *mean = first + *mean / rows;
    }
    moments
}

/// Norm of one sample; all coefficients are repeated to the period.
struct Norm {
    c: usize,
    mean: Vec<f32>,
    rstd: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    slope: f32,
}

impl Norm {
    fn new(mean: &[f32], rstd: &[f32], gamma: &[f32], beta: &[f32], slope: f32) -> Self {
        let c = mean.len();
        Self { c, mean: repeat(mean), rstd: repeat(rstd), gamma: repeat(gamma), beta: repeat(beta), slope }
    }
}

/// Sums the gradient, and the gradient times the normalized value, over the voxels of one sample, `(2, c)`.
fn gradient_sums<T: ActivationElement>(x: &[T], grad: &[T], norm: &Norm, shape: Shape) -> Vec<f64> {
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(shape.block())
        .zip(grad.par_chunks(shape.block()))
        .map(|(x, grad)| block_gradient_sums(x, grad, norm))
        .collect();
    let mut total = vec![0.0f64; 2 * shape.c];
    for block in &blocks {
        for (total, block) in total.iter_mut().zip(block) {
            *total += f64::from(*block);
        }
    }
    total
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn block_gradient_sums<T: ActivationElement>(x: &[T], grad: &[T], norm: &Norm) -> Vec<f32> {
    let period = norm.mean.len();
    let (mut sums, mut projected) = (vec![0.0f32; period], vec![0.0f32; period]);
    for (x, grad) in x.chunks(period).zip(grad.chunks(period)) {
        let len = x.len();
        let (grad, sums, projected) = (&grad[..len], &mut sums[..len], &mut projected[..len]);
        let (mean, rstd, gamma, beta) = (&norm.mean[..len], &norm.rstd[..len], &norm.gamma[..len], &norm.beta[..len]);
        for i in 0..len {
            let normalized = (x[i].widen() - mean[i]) * rstd[i];
            let before = before_activation(normalized * gamma[i] + beta[i], grad[i].widen(), norm.slope);
            sums[i] += before;
            projected[i] += before * normalized;
        }
    }
    let mut folded = vec![0.0; 2 * norm.c];
    let (sum, projection) = folded.split_at_mut(norm.c);
    fold(&sums, sum);
    fold(&projected, projection);
    folded
}

/// Replaces the output gradient by the input gradient, in place.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn input_gradient<T: ActivationElement>(
    grad: &mut [T],
    x: &[T],
    norm: &Norm,
    mean_grad: &[f32],
    mean_projected: &[f32],
) {
    let period = norm.mean.len();
    for (grad, x) in grad.chunks_mut(period).zip(x.chunks(period)) {
        let len = grad.len();
        let (x, mean_grad, mean_projected) = (&x[..len], &mean_grad[..len], &mean_projected[..len]);
        let (mean, rstd, gamma, beta) = (&norm.mean[..len], &norm.rstd[..len], &norm.gamma[..len], &norm.beta[..len]);
        for i in 0..len {
            let normalized = (x[i].widen() - mean[i]) * rstd[i];
            let before = before_activation(normalized * gamma[i] + beta[i], grad[i].widen(), norm.slope);
            let centered = before - mean_grad[i] - normalized * mean_projected[i];
            grad[i] = T::narrow(centered * (gamma[i] * rstd[i]));
        }
    }
}

/// Returns the gradient before the leaky ReLU, given the ReLU's input `activation`.
#[inline(always)]
fn before_activation(activation: f32, grad: f32, slope: f32) -> f32 {
    if activation < 0.0 { grad * slope } else { grad }
}

fn narrowed(values: &[f64]) -> FlexTensor {
    let mut narrow = buffer::<f32>(values.len());
    narrow.iter_mut().zip(values).for_each(|(narrow, value)| *narrow = *value as f32);
    narrow.into_tensor([values.len()])
}
