//! Convolution and transposed convolution with oneDNN.
//!
//! A transposed convolution is the backward-input pass of the convolution from its output to its input, so all six
//! passes use the three passes of [`onednn`](super::onednn) (Dumoulin & Visin 2016, section 4).

use burn::backend::Flex;
use burn_flex::FlexTensor;
use multiversion::multiversion;
use rayon::prelude::*;

use super::buffer_pool::{Buffer, buffer};
use super::element::ActivationElement;
use super::onednn::{Library, OneDnnConv};
use super::tensor::{contiguous, dims, values};
use crate::ops::{ConvParams, WeightGradients};

fn problem<T: ActivationElement>(input: [usize; 5], weight: [usize; 5], params: ConvParams) -> OneDnnConv {
    let [n, z, y, x, c_in] = input;
    let [c_out, _, kz, ky, kx] = weight;
    let (input, kernel) = ([z, y, x], [kz, ky, kx]);
    let output =
        std::array::from_fn(|axis| (input[axis] + 2 * params.padding[axis] - kernel[axis]) / params.stride[axis] + 1);
    OneDnnConv {
        data: T::ONEDNN,
        n,
        c_in,
        c_out,
        input,
        output,
        kernel,
        stride: params.stride,
        padding: params.padding,
    }
}

fn activation(n: usize, extent: [usize; 3], c: usize) -> [usize; 5] {
    [n, extent[0], extent[1], extent[2], c]
}

pub fn forward<T: ActivationElement>(
    library: &Library,
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    params: ConvParams,
) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let problem = problem::<T>(dims(&x), dims(&weight), params);
    let shape = activation(problem.n, problem.output, problem.c_out);
    let mut y = buffer::<T>(shape.iter().product());
    library.forward(problem, values::<T>(&x), values(&weight), values(&bias), &mut y);
    y.into_tensor(shape)
}

pub fn backward_input<T: ActivationElement>(
    library: &Library,
    x: [usize; 5],
    weight: FlexTensor,
    grad: FlexTensor,
    params: ConvParams,
) -> FlexTensor {
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    let problem = problem::<T>(x, dims(&weight), params);
    let mut dx = buffer::<T>(x.iter().product());
    library.backward_input(problem, values(&weight), values::<T>(&grad), &mut dx);
    dx.into_tensor(x)
}

pub fn backward_weights<T: ActivationElement>(
    library: &Library,
    x: FlexTensor,
    weight: [usize; 5],
    grad: FlexTensor,
    params: ConvParams,
) -> WeightGradients<Flex> {
    let (x, grad) = (contiguous(x), contiguous(grad));
    let problem = problem::<T>(dims(&x), weight, params);
    let mut d_weight = buffer::<f32>(weight.iter().product());
    let mut d_bias = buffer::<f32>(problem.c_out);
    library.backward_weights(problem, values::<T>(&x), values::<T>(&grad), &mut d_weight, &mut d_bias);
    WeightGradients { weight: d_weight.into_tensor(weight), bias: d_bias.into_tensor([problem.c_out]) }
}

/// Returns the convolution whose backward-input pass is the transposed convolution of `x` (or of a gradient of that
/// shape).
fn transposed<T: ActivationElement>(x: [usize; 5], weight: [usize; 5]) -> OneDnnConv {
    let [n, z, y, width, c_in] = x;
    let [_, c_out, kz, ky, kx] = weight;
    let kernel = [kz, ky, kx];
    OneDnnConv {
        data: T::ONEDNN,
        n,
        c_in: c_out,
        c_out: c_in,
        input: [z * kz, y * ky, width * kx],
        output: [z, y, width],
        kernel,
        stride: kernel,
        padding: [0; 3],
    }
}

pub fn transpose_forward<T: ActivationElement>(
    library: &Library,
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
) -> FlexTensor {
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let problem = transposed::<T>(dims(&x), dims(&weight));
    let shape = activation(problem.n, problem.input, problem.c_in);
    let mut y = buffer::<T>(shape.iter().product());
    library.backward_input(problem, values(&weight), values::<T>(&x), &mut y);
    add_bias(&mut y, values(&bias));
    y.into_tensor(shape)
}

pub fn transpose_backward_input<T: ActivationElement>(
    library: &Library,
    weight: FlexTensor,
    grad: FlexTensor,
) -> FlexTensor {
    let (weight, grad) = (contiguous(weight), contiguous(grad));
    let [c_in, _, kz, ky, kx] = dims(&weight);
    let [n, z, y, x, _] = dims(&grad);
    let shape = [n, z / kz, y / ky, x / kx, c_in];
    let problem = transposed::<T>(shape, dims(&weight));
    let mut dx = buffer::<T>(shape.iter().product());
    library.forward(problem, values::<T>(&grad), values(&weight), &vec![0.0; c_in], &mut dx);
    dx.into_tensor(shape)
}

pub fn transpose_backward_weights<T: ActivationElement>(
    library: &Library,
    x: FlexTensor,
    weight: [usize; 5],
    grad: FlexTensor,
) -> WeightGradients<Flex> {
    let (x, grad) = (contiguous(x), contiguous(grad));
    let problem = transposed::<T>(dims(&x), weight);
    let mut d_weight = buffer::<f32>(weight.iter().product());
    // The bias gradient of this convolution has the channels of `x`; the transposed convolution's is the sum of `grad`.
    let mut unused = buffer::<f32>(problem.c_out);
    library.backward_weights(problem, values::<T>(&grad), values::<T>(&x), &mut d_weight, &mut unused);
    let d_bias = sum_rows(values::<T>(&grad), problem.c_in);
    WeightGradients { weight: d_weight.into_tensor(weight), bias: d_bias.into_tensor([problem.c_in]) }
}

/// Number of rows per task.
const BLOCK: usize = 1024;

fn add_bias<T: ActivationElement>(y: &mut [T], bias: &[f32]) {
    y.par_chunks_mut(BLOCK * bias.len()).for_each(|block| add_to_rows(block, bias));
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_to_rows<T: ActivationElement>(rows: &mut [T], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (y, bias) in row.iter_mut().zip(bias) {
            *y = T::narrow(y.widen() + bias);
        }
    }
}

/// Sums the rows of a `(rows, c)` matrix, in blocks added in order.
fn sum_rows<T: ActivationElement>(rows: &[T], c: usize) -> Buffer<f32> {
    let blocks: Vec<Vec<f32>> = rows.par_chunks(BLOCK * c).map(|block| sum_of_rows(block, c)).collect();
    let mut total = vec![0.0f64; c];
    for block in &blocks {
        for (total, value) in total.iter_mut().zip(block) {
            *total += f64::from(*value);
        }
    }
    let mut sums = buffer(c);
    sums.iter_mut().zip(total).for_each(|(sum, total)| *sum = total as f32);
    sums
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn sum_of_rows<T: ActivationElement>(rows: &[T], c: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; c];
    for row in rows.chunks_exact(c) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value.widen();
        }
    }
    sum
}
