//! Operations of residual blocks: sum with activation, and average pooling of the skip connection.

use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{allocate, contiguous, elementwise, reuse, vector_size};

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
