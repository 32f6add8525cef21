//! Segmentation head: a 1x1x1 convolution to a few classes in f32. Memory-bound; too narrow for tensor cores.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::runtime::{RowGeometry, Rows, UNITS, allocate, contiguous, elementwise, vector_size};

/// Maximum number of classes for which a unit keeps one sum each in registers.
pub const MAX_CLASSES: usize = 16;

/// One unit per voxel and class.
#[cube(launch)]
fn logits<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<Vector<f32, N>>,
    bias: &Array<f32>,
    y: &mut Array<f32>,
    columns: usize,
    classes: usize,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= y.len() {
        terminate!();
    }
    let class = place % classes;
    let voxel = place / classes;
    let mut sums = Vector::<f32, N>::new(0.0);
    for column in 0..columns {
        sums += Vector::<f32, N>::cast_from(x[voxel * columns + column]) * weight[class * columns + column];
    }
    let mut sum = bias[class];
    #[unroll]
    for channel in 0..N::value() {
        sum += sums[channel];
    }
    y[place] = sum;
}

/// One unit per voxel and vector of channels.
#[cube(launch)]
fn input_gradient<F: Float, N: Size>(
    grad: &Array<f32>,
    weight: &Array<Vector<f32, N>>,
    d_x: &mut Array<Vector<F, N>>,
    columns: usize,
    classes: usize,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= d_x.len() {
        terminate!();
    }
    let column = place % columns;
    let voxel = place / columns;
    let mut sum = Vector::<f32, N>::new(0.0);
    for class in 0..classes {
        sum += Vector::<f32, N>::new(grad[voxel * classes + class]) * weight[class * columns + column];
    }
    d_x[place] = Vector::cast_from(sum);
}

/// Sums, over the rows of a cube and per class, the gradient times the input, and the gradient.
#[cube(launch)]
fn weight_partials<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    grad: &Array<f32>,
    partials: &mut Array<Vector<f32, N>>,
    rows: Rows,
    #[comptime] classes: usize,
    #[define(F)] _dtype: StorageType,
) {
    let unit = rows.unit();
    let mut sums = Array::<Vector<f32, N>>::new(classes);
    let mut totals = Array::<f32>::new(classes);
    #[unroll]
    for class in 0..classes {
        sums[class] = Vector::<f32, N>::new(0.0);
        totals[class] = 0.0;
    }
    let mut row = unit.begin;
    while row < unit.end {
        let value = Vector::<f32, N>::cast_from(x[unit.base + row * rows.columns]);
        #[unroll]
        for class in 0..classes {
            let gradient = grad[row * classes + class];
            sums[class] += value * Vector::<f32, N>::new(gradient);
            totals[class] += gradient;
        }
        row += unit.stride;
    }
    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime!(UNITS));
    let mut shared_totals = SharedMemory::<f32>::new(comptime!(UNITS));
    #[unroll]
    for class in 0..classes {
        sync_cube();
        shared[UNIT_POS as usize] = sums[class];
        shared_totals[UNIT_POS as usize] = totals[class];
        sync_cube();
        if unit.is_first {
            let mut sum = shared[unit.column];
            let mut total = shared_totals[unit.column];
            for row in 1..unit.stride {
                sum += shared[row * rows.columns + unit.column];
                total += shared_totals[row * rows.columns + unit.column];
            }
            // The gradient's sum is the same for all columns; it is stored after the last.
            let place = (CUBE_POS_X as usize * classes + class) * (rows.columns + 1);
            partials[place + unit.column] = sum;
            if unit.column == 0 {
                partials[place + rows.columns] = Vector::<f32, N>::new(total);
            }
        }
    }
}

/// Sums over all parts; one unit per class and column. The bias gradient follows the last column.
#[cube(launch)]
fn weight_gradient<N: Size>(
    partials: &Array<Vector<f32, N>>,
    weight: &mut Array<Vector<f32, N>>,
    bias: &mut Array<f32>,
    columns: usize,
    classes: usize,
    parts: usize,
) {
    let place = ABSOLUTE_POS;
    let width = columns + 1;
    if place >= classes * width {
        terminate!();
    }
    let class = place / width;
    let column = place % width;
    let mut sum = Vector::<f32, N>::new(0.0);
    for part in 0..parts {
        sum += partials[(part * classes + class) * width + column];
    }
    if column < columns {
        weight[class * columns + column] = sum;
    } else {
        bias[class] = sum[0];
    }
}

/// Computes the logits of activations `(n, z, y, x, c)`.
pub fn head<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>, bias: CubeTensor<R>) -> CubeTensor<R> {
    let [n, z, height, width, c] = x.shape().dims();
    let classes = weight.shape()[0];
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let size = vector_size(c, &[x.dtype, DType::F32]);
    let y = allocate(&x, [n, z, height, width, classes], DType::F32);
    let (count, dim) = elementwise(y.shape().num_elements());
    let dtype = x.dtype;
    logits::launch::<R>(
        &x.client.clone(),
        count,
        dim,
        size,
        x.into_array_arg(),
        weight.into_array_arg(),
        bias.into_array_arg(),
        y.clone().into_array_arg(),
        c / size,
        classes,
        dtype.into(),
    );
    y
}

/// Computes the gradients of input, weight and bias; `None` if there are too many classes or channels.
pub fn head_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    grad: CubeTensor<R>,
) -> Option<[CubeTensor<R>; 3]> {
    let [n, z, y, width, c] = x.shape().dims();
    let classes = weight.shape()[0];
    let size = vector_size(c, &[x.dtype, DType::F32]);
    // Samples are contiguous, and the sums are over all of them.
    let geometry = RowGeometry::new(1, n * z * y * width, c / size)?;
    let RowGeometry { rows, columns, .. } = geometry;
    if classes > MAX_CLASSES {
        return None;
    }
    let (x, weight, grad) = (contiguous(x), contiguous(weight), contiguous(grad));
    let (client, dtype) = (x.client.clone(), x.dtype);

    let d_x = allocate(&x, x.shape(), dtype);
    let (count, dim) = elementwise(rows * columns);
    input_gradient::launch::<R>(
        &client,
        count,
        dim,
        size,
        grad.clone().into_array_arg(),
        weight.clone().into_array_arg(),
        d_x.clone().into_array_arg(),
        columns,
        classes,
        dtype.into(),
    );

    let partials = allocate(&x, [geometry.parts(), classes, columns + 1, size], DType::F32);
    let (count, dim) = geometry.grid();
    weight_partials::launch::<R>(
        &client,
        count,
        dim,
        size,
        x.clone().into_array_arg(),
        grad.into_array_arg(),
        partials.clone().into_array_arg(),
        geometry.arg(),
        classes,
        dtype.into(),
    );
    let (d_weight, d_bias) = (allocate(&x, weight.shape(), DType::F32), allocate(&x, [classes], DType::F32));
    let (count, dim) = elementwise(classes * (columns + 1));
    weight_gradient::launch::<R>(
        &client,
        count,
        dim,
        size,
        partials.into_array_arg(),
        d_weight.clone().into_array_arg(),
        d_bias.clone().into_array_arg(),
        columns,
        classes,
        geometry.parts(),
    );
    Some([d_x, d_weight, d_bias])
}
