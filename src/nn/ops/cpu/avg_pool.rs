//! Average pooling. Work is split by lines of voxels along x.

use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::element::ActivationElement;
use super::pool::buffer;
use super::{contiguous, dims, values};

/// Pools `(n, z, y, x, c)` to extents divided by `size`.
pub fn forward<T: ActivationElement>(x: &FlexTensor, size: [usize; 3]) -> FlexTensor {
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

/// Computes the input gradient of [`forward`] from its output gradient.
pub fn backward<T: ActivationElement>(grad: &FlexTensor, size: [usize; 3]) -> FlexTensor {
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
