//! Memory-bound operations: concatenation and split along the channels, leaky ReLU of a sum, and average pooling.

use burn::tensor::TensorMetadata;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::runtime::{allocate, contiguous, elementwise, reuse, vector_size};

/// Concatenates the rows of `a` and `b`; one unit per vector.
#[cube(launch)]
fn concat_kernel<F: Float, N: Size>(
    a: &Array<Vector<F, N>>,
    b: &Array<Vector<F, N>>,
    joined: &mut Array<Vector<F, N>>,
    columns_a: usize,
    columns_b: usize,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= joined.len() {
        terminate!();
    }
    let row = place / (columns_a + columns_b);
    let column = place % (columns_a + columns_b);
    if column < columns_a {
        joined[place] = a[row * columns_a + column];
    } else {
        joined[place] = b[row * columns_b + column - columns_a];
    }
}

/// Inverse of [`concat_kernel`].
#[cube(launch)]
fn split_kernel<F: Float, N: Size>(
    joined: &Array<Vector<F, N>>,
    a: &mut Array<Vector<F, N>>,
    b: &mut Array<Vector<F, N>>,
    columns_a: usize,
    columns_b: usize,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= joined.len() {
        terminate!();
    }
    let row = place / (columns_a + columns_b);
    let column = place % (columns_a + columns_b);
    if column < columns_a {
        a[row * columns_a + column] = joined[place];
    } else {
        b[row * columns_b + column - columns_a] = joined[place];
    }
}

/// Concatenates `a` and `b` `(n, z, y, x, c)` along the channels.
pub fn concat<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let [n, z, y, x, channels_a] = a.shape().dims();
    let channels_b = b.shape()[4];
    let (a, b) = (contiguous(a), contiguous(b));
    let size = vector_size(channels_a, &[a.dtype]).min(vector_size(channels_b, &[a.dtype]));
    let joined = allocate(&a, [n, z, y, x, channels_a + channels_b], a.dtype);
    let (count, dim) = elementwise(joined.shape().num_elements() / size);
    let dtype = a.dtype;
    concat_kernel::launch::<R>(
        &joined.client,
        count,
        dim,
        size,
        a.into_array_arg(),
        b.into_array_arg(),
        joined.clone().into_array_arg(),
        channels_a / size,
        channels_b / size,
        dtype.into(),
    );
    joined
}

/// Splits off the first `channels` channels; returns them and the rest.
pub fn split<R: CubeRuntime>(joined: CubeTensor<R>, channels: usize) -> (CubeTensor<R>, CubeTensor<R>) {
    let [n, z, y, x, all] = joined.shape().dims();
    let joined = contiguous(joined);
    let size = vector_size(channels, &[joined.dtype]).min(vector_size(all - channels, &[joined.dtype]));
    let a = allocate(&joined, [n, z, y, x, channels], joined.dtype);
    let b = allocate(&joined, [n, z, y, x, all - channels], joined.dtype);
    let (count, dim) = elementwise(joined.shape().num_elements() / size);
    let dtype = joined.dtype;
    split_kernel::launch::<R>(
        &a.client,
        count,
        dim,
        size,
        joined.into_array_arg(),
        a.clone().into_array_arg(),
        b.clone().into_array_arg(),
        channels / size,
        (all - channels) / size,
        dtype.into(),
    );
    (a, b)
}

/// Computes `leaky_relu(a + b)`.
#[cube(launch)]
fn sum_activate<F: Float, N: Size>(
    a: &Array<Vector<F, N>>,
    b: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    slope: f32,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= y.len() {
        terminate!();
    }
    let sum = Vector::<f32, N>::cast_from(a[place]) + Vector::<f32, N>::cast_from(b[place]);
    let negative = sum.less_than(Vector::<f32, N>::new(0.0));
    y[place] = Vector::cast_from(select_many(negative, sum * Vector::<f32, N>::new(slope), sum));
}

/// Computes the gradient before the activation, given the activation's output `y`.
#[cube(launch)]
fn scale_negative<F: Float, N: Size>(
    y: &Array<Vector<F, N>>,
    grad: &Array<Vector<F, N>>,
    output: &mut Array<Vector<F, N>>,
    slope: f32,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= output.len() {
        terminate!();
    }
    let grad = Vector::<f32, N>::cast_from(grad[place]);
    let negative = Vector::<f32, N>::cast_from(y[place]).less_than(Vector::<f32, N>::new(0.0));
    output[place] = Vector::cast_from(select_many(negative, grad * Vector::<f32, N>::new(slope), grad));
}

/// Averages over blocks of `sz * sy * sx` voxels; one unit per vector of the output with extents `height` and `width`.
#[cube(launch)]
fn avg_pool_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    output: &mut Array<Vector<F, N>>,
    height: usize,
    width: usize,
    columns: usize,
    #[comptime] size: [usize; 3],
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= output.len() {
        terminate!();
    }
    let sz = comptime!(size[0]);
    let sy = comptime!(size[1]);
    let sx = comptime!(size[2]);
    let column = place % columns;
    let across = place / columns % width;
    let row = place / (columns * width) % height;
    // Samples and their planes are contiguous, so the z axis is merged with the samples.
    let plane = place / (columns * width * height);
    let mut sum = Vector::<f32, N>::new(0.0);
    for dz in 0..sz {
        for dy in 0..sy {
            for dx in 0..sx {
                let line = (plane * sz + dz) * height * sy + row * sy + dy;
                let voxel = line * width * sx + across * sx + dx;
                sum += Vector::<f32, N>::cast_from(x[voxel * columns + column]);
            }
        }
    }
    output[place] = Vector::cast_from(sum / Vector::<f32, N>::new((sz * sy * sx) as f32));
}

/// Distributes each voxel's gradient, divided by the block size, to the voxels of its block; one unit per vector of the
/// output with extents `height` and `width`.
#[cube(launch)]
fn avg_pool_backward_kernel<F: Float, N: Size>(
    grad: &Array<Vector<F, N>>,
    output: &mut Array<Vector<F, N>>,
    height: usize,
    width: usize,
    columns: usize,
    #[comptime] size: [usize; 3],
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= output.len() {
        terminate!();
    }
    let sz = comptime!(size[0]);
    let sy = comptime!(size[1]);
    let sx = comptime!(size[2]);
    let column = place % columns;
    let across = place / columns % width / sx;
    let row = place / (columns * width) % height / sy;
    let plane = place / (columns * width * height) / sz;
    let voxel = (plane * (height / sy) + row) * (width / sx) + across;
    let value = Vector::<f32, N>::cast_from(grad[voxel * columns + column]);
    output[place] = Vector::cast_from(value / Vector::<f32, N>::new((sz * sy * sx) as f32));
}

/// Computes `leaky_relu(a + b)`, in place in `a` if its memory is not shared.
pub fn add_leaky_relu<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, slope: f32) -> CubeTensor<R> {
    let (a, b) = (contiguous(a), contiguous(b));
    let (len, dtype) = (a.shape().num_elements(), a.dtype);
    let size = vector_size(len, &[dtype]);
    let y = reuse(&a);
    let (count, dim) = elementwise(len / size);
    sum_activate::launch::<R>(
        &y.client,
        count,
        dim,
        size,
        a.into_array_arg(),
        b.into_array_arg(),
        y.clone().into_array_arg(),
        slope,
        dtype.into(),
    );
    y
}

/// Computes the gradient of either operand of [`add_leaky_relu`], in place in `grad` if its memory is not shared.
pub fn add_leaky_relu_backward<R: CubeRuntime>(y: CubeTensor<R>, grad: CubeTensor<R>, slope: f32) -> CubeTensor<R> {
    let (y, grad) = (contiguous(y), contiguous(grad));
    let (len, dtype) = (y.shape().num_elements(), y.dtype);
    let size = vector_size(len, &[dtype]);
    let output = reuse(&grad);
    let (count, dim) = elementwise(len / size);
    scale_negative::launch::<R>(
        &output.client,
        count,
        dim,
        size,
        y.into_array_arg(),
        grad.into_array_arg(),
        output.clone().into_array_arg(),
        slope,
        dtype.into(),
    );
    output
}

/// Averages over blocks of `size` voxels.
pub fn avg_pool<R: CubeRuntime>(x: CubeTensor<R>, size: [usize; 3]) -> CubeTensor<R> {
    let [n, z, y, width, c] = x.shape().dims();
    let shape = [n, z / size[0], y / size[1], width / size[2], c];
    let (x, vector) = (contiguous(x.clone()), vector_size(c, &[x.dtype]));
    let output = allocate(&x, shape, x.dtype);
    let (count, dim) = elementwise(output.shape().num_elements() / vector);
    let dtype = x.dtype;
    avg_pool_kernel::launch::<R>(
        &output.client,
        count,
        dim,
        vector,
        x.into_array_arg(),
        output.clone().into_array_arg(),
        shape[2],
        shape[3],
        c / vector,
        size,
        dtype.into(),
    );
    output
}

/// Computes the input gradient of [`avg_pool`].
pub fn avg_pool_backward<R: CubeRuntime>(grad: CubeTensor<R>, size: [usize; 3]) -> CubeTensor<R> {
    let [n, z, y, width, c] = grad.shape().dims();
    let shape = [n, z * size[0], y * size[1], width * size[2], c];
    let (grad, vector) = (contiguous(grad.clone()), vector_size(c, &[grad.dtype]));
    let output = allocate(&grad, shape, grad.dtype);
    let (count, dim) = elementwise(output.shape().num_elements() / vector);
    let dtype = grad.dtype;
    avg_pool_backward_kernel::launch::<R>(
        &output.client,
        count,
        dim,
        vector,
        grad.into_array_arg(),
        output.clone().into_array_arg(),
        shape[2],
        shape[3],
        c / vector,
        size,
        dtype.into(),
    );
    output
}
