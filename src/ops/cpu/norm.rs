//! Instance norm and leaky ReLU in one: two passes over memory forward, two backward, nothing saved but the statistics.
//!
//! Channels-last, a voxel is a row of `c` values. A block of rows fits the cache, and in it [`LANES`] channels at a time
//! are carried through all rows, so that sums and coefficients stay in registers. Statistics are f32 sums of deviations
//! from the block's first row, combined over the blocks in f64 in a fixed order (Chan, Golub, LeVeque 1983), so a large
//! mean costs no precision and threads do not change the result. A sample is finished before the next begins, because its
//! second pass then finds it in the last cache.

use std::ops::Range;

use burn::backend::Flex;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::element::Element;
use super::pool::{Buffer, buffer};
use super::{NormGradients, NormParams, contiguous, dims, values};
use crate::simd::widest;

/// Values one task handles: 64 KiB of f32, which stays in a core's L2 cache between the groups of channels.
const BLOCK_VALUES: usize = 16 * 1024;
/// Channels that are handled together: an AVX-512 register.
const LANES: usize = 16;

/// [`LANES`] channels; where the tensor has fewer left, the rest is 0.
type Lanes = [f32; LANES];

/// `(y, statistics)`; statistics are mean and 1 / sqrt(variance + eps), `(2, n, c)` in f32.
pub fn forward<T: Element>(
    x: &FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    params: NormParams,
) -> (FlexTensor, FlexTensor) {
    let (x, gamma, beta) = (contiguous(x.clone()), contiguous(gamma.clone()), contiguous(beta.clone()));
    let shape = Shape::of(&x);
    let x_values = values::<T>(&x);
    let mut statistics = buffer::<f32>(2 * shape.n * shape.c);
    let mut y = buffer::<T>(x_values.len());
    for sample in 0..shape.n {
        let range = shape.sample_range(sample);
        let x = &x_values[range.clone()];
        let (mean, rstd) = shape.of_sample_mut(&mut statistics, sample);
        moments(x, shape.c, params.eps, mean, rstd);
        let scale: Vec<f32> = rstd.iter().zip(values::<f32>(&gamma)).map(|(rstd, gamma)| rstd * gamma).collect();
        let shift: Vec<f32> = mean
            .iter()
            .zip(&scale)
            .zip(values::<f32>(&beta))
            .map(|((mean, scale), beta)| beta - mean * scale)
            .collect();
        y[range].par_chunks_mut(shape.block()).zip(x.par_chunks(shape.block())).for_each(|(y, x)| {
            widest(|| {
                for_groups(shape.c, |group| {
                    let (scale, shift) = (load(&scale, &group), load(&shift, &group));
                    for (y, x) in y.chunks_exact_mut(shape.c).zip(x.chunks_exact(shape.c)) {
                        let value = zip(zip(load(x, &group), scale, |x, scale| x * scale), shift, |x, shift| x + shift);
                        store(y, &group, value.map(|v| if v < 0.0 { v * params.negative_slope } else { v }));
                    }
                });
            });
        });
    }
    (y.into_tensor(dims::<5>(&x)), statistics.into_tensor([2, shape.n, shape.c]))
}

/// Gradients of [`forward`]. `grad`'s buffer becomes the input gradient's when nobody else holds it.
pub fn backward<T: Element>(
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
        let (mean, rstd) = shape.of_sample(values(&statistics), sample);
        let range = shape.sample_range(sample);
        let x = &x_values[range.clone()];
        let d_x = &mut d_x[range];
        let norm = Norm { mean, rstd, gamma: values(&gamma), beta: values(&beta), slope: params.negative_slope };

        let sums = gradient_sums(x, d_x, &norm, shape);
        let voxels = shape.voxels as f64;
        let means: Vec<f32> = sums.iter().map(|sum| (sum / voxels) as f32).collect();
        for channel in 0..shape.c {
            d_beta[channel] += sums[channel];
            d_gamma[channel] += sums[shape.c + channel];
        }
        let (mean_grad, mean_projected) = means.split_at(shape.c);
        d_x.par_chunks_mut(shape.block()).zip(x.par_chunks(shape.block())).for_each(|(d_x, x)| {
            widest(|| input_gradient(d_x, x, &norm, mean_grad, mean_projected));
        });
    }
    let input = match fresh {
        Some(fresh) => fresh.into_tensor(dims::<5>(&x)),
        None => grad,
    };
    NormGradients { input, gamma: narrowed(&d_gamma), beta: narrowed(&d_beta) }
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

    fn sample_range(&self, sample: usize) -> Range<usize> {
        let len = self.voxels * self.c;
        sample * len..(sample + 1) * len
    }

    /// Values of a block: whole rows, a fixed number of them.
    fn block(&self) -> usize {
        block(self.c)
    }

    /// Mean and reciprocal standard deviation of one sample.
    fn of_sample<'a>(&self, statistics: &'a [f32], sample: usize) -> (&'a [f32], &'a [f32]) {
        let (mean, rstd) = statistics.split_at(self.n * self.c);
        let range = sample * self.c..(sample + 1) * self.c;
        (&mean[range.clone()], &rstd[range])
    }

    fn of_sample_mut<'a>(&self, statistics: &'a mut Buffer<f32>, sample: usize) -> (&'a mut [f32], &'a mut [f32]) {
        let (mean, rstd) = statistics.split_at_mut(self.n * self.c);
        let range = sample * self.c..(sample + 1) * self.c;
        (&mut mean[range.clone()], &mut rstd[range])
    }
}

fn block(c: usize) -> usize {
    (BLOCK_VALUES / c).max(1) * c
}

/// Mean and 1 / sqrt(variance + eps) of each channel of a sample.
fn moments<T: Element>(x: &[T], c: usize, eps: f32, means: &mut [f32], rstds: &mut [f32]) {
    let blocks: Vec<(usize, Vec<f32>)> =
        x.par_chunks(block(c)).map(|block| (block.len() / c, widest(|| block_moments(block, c)))).collect();
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

/// Mean and sum of squared deviations of each channel of a block, `(2, c)`.
#[inline(always)]
fn block_moments<T: Element>(block: &[T], c: usize) -> Vec<f32> {
    let rows = (block.len() / c) as f32;
    let mut moments = vec![0.0; 2 * c];
    let (mean, m2) = moments.split_at_mut(c);
    for_groups(c, |group| {
        // Deviations from some value near the mean: rounding errors stay small however large the mean is.
        let origin = load(&block[..c], &group);
        let (mut sum, mut squares) = ([0.0; LANES], [0.0; LANES]);
        for row in block.chunks_exact(c) {
            let deviation = zip(load(row, &group), origin, |x, origin| x - origin);
            sum = zip(sum, deviation, |sum, deviation| sum + deviation);
            squares = zip(squares, deviation, |squares, deviation| squares + deviation * deviation);
        }
        store(mean, &group, zip(origin, sum, |origin, sum| origin + sum / rows));
        store(m2, &group, zip(squares, sum, |squares, sum| (squares - sum * sum / rows).max(0.0)));
    });
    moments
}

/// The norm of one sample.
struct Norm<'a> {
    mean: &'a [f32],
    rstd: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    slope: f32,
}

impl Norm<'_> {
    #[inline(always)]
    fn of(&self, group: &Range<usize>) -> GroupNorm {
        GroupNorm {
            mean: load(self.mean, group),
            rstd: load(self.rstd, group),
            gamma: load(self.gamma, group),
            beta: load(self.beta, group),
            slope: self.slope,
        }
    }
}

/// The norm of a group of channels, in registers.
struct GroupNorm {
    mean: Lanes,
    rstd: Lanes,
    gamma: Lanes,
    beta: Lanes,
    slope: f32,
}

impl GroupNorm {
    /// The normalised values and the gradients before the leaky ReLU.
    #[inline(always)]
    fn undo(&self, x: Lanes, grad: Lanes) -> (Lanes, Lanes) {
        let (mut normalised, mut before) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            normalised[lane] = (x[lane] - self.mean[lane]) * self.rstd[lane];
            let activation = normalised[lane] * self.gamma[lane] + self.beta[lane];
            before[lane] = if activation < 0.0 { grad[lane] * self.slope } else { grad[lane] };
        }
        (normalised, before)
    }
}

/// Sums over the voxels of one sample of the gradient and of gradient times normalised value, `(2, c)`.
fn gradient_sums<T: Element>(x: &[T], grad: &[T], norm: &Norm, shape: Shape) -> Vec<f64> {
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(shape.block())
        .zip(grad.par_chunks(shape.block()))
        .map(|(x, grad)| widest(|| block_gradient_sums(x, grad, norm)))
        .collect();
    let mut total = vec![0.0f64; 2 * shape.c];
    for block in &blocks {
        for (total, block) in total.iter_mut().zip(block) {
            *total += f64::from(*block);
        }
    }
    total
}

#[inline(always)]
fn block_gradient_sums<T: Element>(x: &[T], grad: &[T], norm: &Norm) -> Vec<f32> {
    let c = norm.mean.len();
    let mut sums = vec![0.0f32; 2 * c];
    let (sum, projected) = sums.split_at_mut(c);
    for_groups(c, |group| {
        let norm = norm.of(&group);
        let (mut group_sum, mut group_projected) = ([0.0; LANES], [0.0; LANES]);
        for (x, grad) in x.chunks_exact(c).zip(grad.chunks_exact(c)) {
            let (normalised, before) = norm.undo(load(x, &group), load(grad, &group));
            group_sum = zip(group_sum, before, |sum, before| sum + before);
            group_projected = zip(group_projected, zip(before, normalised, |b, n| b * n), |sum, value| sum + value);
        }
        store(sum, &group, group_sum);
        store(projected, &group, group_projected);
    });
    sums
}

/// Turns the gradient of the output into that of the input, in place.
#[inline(always)]
fn input_gradient<T: Element>(grad: &mut [T], x: &[T], norm: &Norm, mean_grad: &[f32], mean_projected: &[f32]) {
    let c = norm.mean.len();
    for_groups(c, |group| {
        let norm = norm.of(&group);
        let (mean_grad, mean_projected) = (load(mean_grad, &group), load(mean_projected, &group));
        let factor = zip(norm.gamma, norm.rstd, |gamma, rstd| gamma * rstd);
        for (grad, x) in grad.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let (normalised, before) = norm.undo(load(x, &group), load(grad, &group));
            let mut d_x = [0.0; LANES];
            for lane in 0..LANES {
                d_x[lane] = (before[lane] - mean_grad[lane] - normalised[lane] * mean_projected[lane]) * factor[lane];
            }
            store(grad, &group, d_x);
        }
    });
}

/// Calls `run` with the channels of each group. The two calls let the compiler know that all groups but the last are full.
#[inline(always)]
fn for_groups(c: usize, mut run: impl FnMut(Range<usize>)) {
    let full = c - c % LANES;
    for first in (0..full).step_by(LANES) {
        run(first..first + LANES);
    }
    if full < c {
        run(full..c);
    }
}

#[inline(always)]
fn load<T: Element>(row: &[T], group: &Range<usize>) -> Lanes {
    let values = &row[group.clone()];
    match <&[T; LANES]>::try_from(values) {
        Ok(values) => values.map(Element::widen),
        Err(_) => {
            let mut lanes = [0.0; LANES];
            lanes.iter_mut().zip(values).for_each(|(lane, value)| *lane = value.widen());
            lanes
        }
    }
}

#[inline(always)]
fn store<T: Element>(row: &mut [T], group: &Range<usize>, lanes: Lanes) {
    let values = &mut row[group.clone()];
    match <&mut [T; LANES]>::try_from(&mut *values) {
        Ok(values) => *values = lanes.map(T::narrow),
        Err(_) => values.iter_mut().zip(lanes).for_each(|(value, lane)| *value = T::narrow(lane)),
    }
}

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

fn narrowed(values: &[f64]) -> FlexTensor {
    let mut narrow = buffer::<f32>(values.len());
    narrow.iter_mut().zip(values).for_each(|(narrow, value)| *narrow = *value as f32);
    narrow.into_tensor([values.len()])
}
