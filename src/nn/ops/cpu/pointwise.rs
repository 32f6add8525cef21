//! Memory-bound operations: addition of gradients, leaky ReLU of a sum, concatenation and average pooling.
//!
//! Each reads its operands once and writes its result once, in blocks of fixed size.

use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::buffer_pool::buffer;
use super::element::ActivationElement;
use super::tensor::{contiguous, dims, values};

/// Number of values per task of an elementwise operation.
const VALUES: usize = 64 * 1024;
/// Number of voxels per task of a concatenation or split.
const VOXELS: usize = 4096;

/// Computes `a + b`, in place in `a` if its memory is not shared.
pub fn accumulate<T: ActivationElement>(a: FlexTensor, b: &FlexTensor) -> FlexTensor {
    overwrite::<T>(a, b, add_to)
}

/// Computes `leaky_relu(a + b)`, in place in `a` if its memory is not shared.
pub fn add_leaky_relu<T: ActivationElement>(a: FlexTensor, b: &FlexTensor, slope: f32) -> FlexTensor {
    overwrite::<T>(a, b, |a, b| sum_activate(a, b, slope))
}

/// Computes the gradient of either operand of [`add_leaky_relu`], in place in `grad` if its memory is not shared.
pub fn add_leaky_relu_backward<T: ActivationElement>(y: &FlexTensor, grad: FlexTensor, slope: f32) -> FlexTensor {
    overwrite::<T>(grad, y, |grad, y| scale_negative(grad, y, slope))
}

/// Applies `kernel` to blocks of both tensors and stores the result in the first one, or in a copy if its memory is
/// shared.
fn overwrite<T: ActivationElement>(
    first: FlexTensor,
    second: &FlexTensor,
    kernel: impl Fn(&mut [T], &[T]) + Sync,
) -> FlexTensor {
    let (mut first, second) = (contiguous(first), contiguous(second.clone()));
    let second = values::<T>(&second);
    if first.is_unique() && first.storage::<T>().len() == second.len() {
        let run: &mut [T] = first.storage_mut();
        run.par_chunks_mut(VALUES).zip(second.par_chunks(VALUES)).for_each(|(first, second)| kernel(first, second));
        return first;
    }
    let mut result = buffer::<T>(second.len());
    let parts =
        result.par_chunks_mut(VALUES).zip(values::<T>(&first).par_chunks(VALUES)).zip(second.par_chunks(VALUES));
    parts.for_each(|((result, first), second)| {
        result.copy_from_slice(first);
        kernel(result, second);
    });
    result.into_tensor(dims::<5>(&first))
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_to<T: ActivationElement>(sums: &mut [T], b: &[T]) {
    for (sum, b) in sums.iter_mut().zip(b) {
        *sum = T::narrow(sum.widen() + b.widen());
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum_activate<T: ActivationElement>(a: &mut [T], b: &[T], slope: f32) {
    for (a, b) in a.iter_mut().zip(b) {
        let sum = a.widen() + b.widen();
        *a = T::narrow(if sum < 0.0 { sum * slope } else { sum });
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn scale_negative<T: ActivationElement>(grad: &mut [T], y: &[T], slope: f32) {
    for (grad, y) in grad.iter_mut().zip(y) {
        let value = grad.widen();
        *grad = T::narrow(if y.widen() < 0.0 { value * slope } else { value });
    }
}

/// Concatenates `(n, z, y, x, ca)` and `(n, z, y, x, cb)` to `(n, z, y, x, ca + cb)`.
pub fn concat<T: ActivationElement>(a: &FlexTensor, b: &FlexTensor) -> FlexTensor {
    let (a, b) = (contiguous(a.clone()), contiguous(b.clone()));
    let [n, z, y, x, ca] = dims(&a);
    let [.., cb] = dims::<5>(&b);
    let mut joined = buffer::<T>(n * z * y * x * (ca + cb));
    joined
        .par_chunks_mut(VOXELS * (ca + cb))
        .zip(values::<T>(&a).par_chunks(VOXELS * ca))
        .zip(values::<T>(&b).par_chunks(VOXELS * cb))
        .for_each(|((joined, a), b)| {
            for ((to, a), b) in joined.chunks_exact_mut(ca + cb).zip(a.chunks_exact(ca)).zip(b.chunks_exact(cb)) {
                to[..ca].copy_from_slice(a);
                to[ca..].copy_from_slice(b);
            }
        });
    joined.into_tensor([n, z, y, x, ca + cb])
}

/// Inverse of [`concat`]; the first part has `ca` channels.
pub fn split<T: ActivationElement>(joined: &FlexTensor, ca: usize) -> (FlexTensor, FlexTensor) {
    let joined = contiguous(joined.clone());
    let [n, z, y, x, c] = dims(&joined);
    let cb = c - ca;
    let voxels = n * z * y * x;
    let (mut a, mut b) = (buffer::<T>(voxels * ca), buffer::<T>(voxels * cb));
    a.par_chunks_mut(VOXELS * ca)
        .zip(b.par_chunks_mut(VOXELS * cb))
        .zip(values::<T>(&joined).par_chunks(VOXELS * c))
        .for_each(|((a, b), joined)| {
            for ((from, a), b) in joined.chunks_exact(c).zip(a.chunks_exact_mut(ca)).zip(b.chunks_exact_mut(cb)) {
                a.copy_from_slice(&from[..ca]);
                b.copy_from_slice(&from[ca..]);
            }
        });
    (a.into_tensor([n, z, y, x, ca]), b.into_tensor([n, z, y, x, cb]))
}

/// Averages `(n, z, y, x, c)` over blocks of `size` voxels. Work is split by lines of voxels along x.
pub fn avg_pool<T: ActivationElement>(x: &FlexTensor, size: [usize; 3]) -> FlexTensor {
    let x = contiguous(x.clone());
    let [n, z, y, width, c] = dims(&x);
    let [sz, sy, sx] = size;
    let (rows, line) = (y / sy, width * c);
    let shape = [n, z / sz, rows, width / sx, c];
    let mut means = buffer::<T>(shape.iter().product());
    let factor = 1.0 / (sz * sy * sx) as f32;
    means.par_chunks_mut(shape[3] * c).enumerate().for_each(|(number, means)| {
        let (plane, row) = (number / rows, number % rows);
        let mut sums = vec![0.0f32; means.len()];
        for dz in 0..sz {
            for dy in 0..sy {
                let at = ((plane * sz + dz) * y + row * sy + dy) * line;
                add_line(&mut sums, &values::<T>(&x)[at..at + line], sx, c);
            }
        }
        scale(means, &sums, factor);
    });
    means.into_tensor(shape)
}

/// Computes the input gradient of [`avg_pool`] from its output gradient.
pub fn avg_pool_backward<T: ActivationElement>(grad: &FlexTensor, size: [usize; 3]) -> FlexTensor {
    let grad = contiguous(grad.clone());
    let [n, z, y, width, c] = dims(&grad);
    let [sz, sy, sx] = size;
    let (rows, line) = (y * sy, width * c);
    let shape = [n, z * sz, rows, width * sx, c];
    let mut dx = buffer::<T>(shape.iter().product());
    let factor = 1.0 / (sz * sy * sx) as f32;
    dx.par_chunks_mut(shape[3] * c).enumerate().for_each(|(number, dx)| {
        let (plane, row) = (number / rows, number % rows);
        let at = (plane / sz * y + row / sy) * line;
        broadcast_line(dx, &values::<T>(&grad)[at..at + line], sx, c, factor);
    });
    dx.into_tensor(shape)
}

/// Adds `sx` neighboring voxels of a line to each sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_line<T: ActivationElement>(sums: &mut [f32], line: &[T], sx: usize, c: usize) {
    for (sums, block) in sums.chunks_exact_mut(c).zip(line.chunks_exact(sx * c)) {
        for voxel in block.chunks_exact(c) {
            for (sum, value) in sums.iter_mut().zip(voxel) {
                *sum += value.widen();
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn scale<T: ActivationElement>(to: &mut [T], from: &[f32], factor: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = T::narrow(from * factor);
    }
}

/// Copies each voxel's values, scaled, to `sx` neighboring voxels.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn broadcast_line<T: ActivationElement>(to: &mut [T], from: &[T], sx: usize, c: usize, factor: f32) {
    for (block, from) in to.chunks_exact_mut(sx * c).zip(from.chunks_exact(c)) {
        for voxel in block.chunks_exact_mut(c) {
            for (to, from) in voxel.iter_mut().zip(from) {
                *to = T::narrow(from.widen() * factor);
            }
        }
    }
}
