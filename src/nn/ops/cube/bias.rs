//! Bias of a vendor library's convolution: addition and gradient.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

use super::launch::{RowGeometry, UNITS, allocate, contiguous, elementwise, reuse, vector_size};

#[cube(launch)]
fn add_bias<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    bias: &Array<Vector<f32, N>>,
    y: &mut Array<Vector<F, N>>,
    columns: usize,
    #[define(F)] _dtype: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place >= y.len() {
        terminate!();
    }
    y[place] = Vector::cast_from(Vector::<f32, N>::cast_from(x[place]) + bias[place % columns]);
}

/// Sums over the rows of a part.
#[cube(launch)]
fn partial_sums<F: Float, N: Size>(
    grad: &Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: usize,
    columns: usize,
    part: usize,
    #[define(F)] _dtype: StorageType,
) {
    let stride = comptime!(UNITS) / columns;
    let unit = UNIT_POS as usize;
    let column = unit % columns;
    let first_row = unit / columns;
    let begin = CUBE_POS_X as usize * part;
    let end = min(begin + part, rows);
    let mut sum = Vector::<f32, N>::new(0.0);
    if first_row < stride {
        let mut row = begin + first_row;
        while row < end {
            sum += Vector::<f32, N>::cast_from(grad[row * columns + column]);
            row += stride;
        }
    }
    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime!(UNITS));
    shared[unit] = sum;
    sync_cube();
    if unit < columns {
        for row in 1..stride {
            sum += shared[row * columns + unit];
        }
        partials[CUBE_POS_X as usize * columns + unit] = sum;
    }
}

/// Sums over all parts; one unit per column.
#[cube(launch)]
fn total_sums<N: Size>(
    partials: &Array<Vector<f32, N>>,
    sums: &mut Array<Vector<f32, N>>,
    columns: usize,
    parts: usize,
) {
    let column = ABSOLUTE_POS;
    if column >= columns {
        terminate!();
    }
    let mut sum = Vector::<f32, N>::new(0.0);
    for part in 0..parts {
        sum += partials[part * columns + column];
    }
    sums[column] = sum;
}

/// Computes `x + bias` for activations `(n, z, y, x, c)`, in place in `x` if its memory is not shared.
pub fn add<R: CubeRuntime>(x: CubeTensor<R>, bias: CubeTensor<R>) -> CubeTensor<R> {
    let (x, bias) = (contiguous(x), contiguous(bias));
    let channels = bias.shape()[0];
    let size = vector_size(channels, &[x.dtype, DType::F32]);
    let y = reuse(&x);
    let (count, dim) = elementwise(x.shape().num_elements() / size);
    let dtype = x.dtype;
    add_bias::launch::<R>(
        &y.client,
        count,
        dim,
        size,
        x.into_array_arg(),
        bias.into_array_arg(),
        y.clone().into_array_arg(),
        channels / size,
        dtype.into(),
    );
    y
}

/// Sums over all axes but the channels, in f32; `None` if there are more channels than units per cube.
pub fn gradient<R: CubeRuntime>(grad: CubeTensor<R>) -> Option<CubeTensor<R>> {
    let [n, z, y, x, channels] = grad.shape().dims();
    let size = vector_size(channels, &[grad.dtype, DType::F32]);
    let geometry = RowGeometry::new(1, n * z * y * x, channels / size)?;
    let RowGeometry { rows, columns, part, .. } = geometry;
    let grad = contiguous(grad);
    let partials = allocate(&grad, [geometry.parts(), channels], DType::F32);
    let (count, dim) = geometry.grid();
    let dtype = grad.dtype;
    partial_sums::launch::<R>(
        &partials.client,
        count,
        dim,
        size,
        grad.into_array_arg(),
        partials.clone().into_array_arg(),
        rows,
        columns,
        part,
        dtype.into(),
    );
    let sums = allocate(&partials, [channels], DType::F32);
    let (count, dim) = elementwise(columns);
    total_sums::launch::<R>(
        &sums.client,
        count,
        dim,
        size,
        partials.into_array_arg(),
        sums.clone().into_array_arg(),
        columns,
        geometry.parts(),
    );
    Some(sums)
}
