//! Convolutions with the vendor's library if the runtime has one and it is faster, otherwise Burn's kernels.
//!
//! The library reads weights channels-last, `(a, kz, ky, kx, b)` in the activation type, which tensor cores require. They
//! are stored in PyTorch's order, `(a, b, kz, ky, kx)` in f32, and converted here. The bias and its gradient have kernels
//! of their own.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::runtime::{GpuRuntime, RowGeometry, Rows, UNITS, allocate, contiguous, elementwise, reuse, vector_size};
use crate::ops::{ConvParams, ConvPass};

/// Returns `None` if no library supports the problem.
pub fn forward<R: GpuRuntime>(x: &CubeTensor<R>, weight: &CubeTensor<R>, params: ConvParams) -> Option<CubeTensor<R>> {
    R::has_convolutions(&x.device).then_some(())?;
    let [n, z, height, width, _] = x.shape().dims();
    let [c_out, _, kz, ky, kx] = weight.shape().dims();
    let extent = |axis: usize, input: usize, kernel: usize| {
        (input + 2 * params.padding[axis] - kernel) / params.stride[axis] + 1
    };
    let shape = [n, extent(0, z, kz), extent(1, height, ky), extent(2, width, kx), c_out];
    let x = contiguous(x.clone());
    let weight = channels_last(weight.clone(), x.dtype);
    let y = allocate(&x, shape, x.dtype);
    R::convolution(ConvPass::Forward, [&x, &weight, &y], params).then_some(y)
}

/// Returns `None` if no library supports the problem. `x` is the shape of the input.
pub fn backward_input<R: GpuRuntime>(
    x: [usize; 5],
    weight: &CubeTensor<R>,
    grad: &CubeTensor<R>,
    params: ConvParams,
) -> Option<CubeTensor<R>> {
    R::has_convolutions(&grad.device).then_some(())?;
    let grad = contiguous(grad.clone());
    let weight = channels_last(weight.clone(), grad.dtype);
    let d_x = allocate(&grad, x, grad.dtype);
    R::convolution(ConvPass::BackwardInput, [&d_x, &weight, &grad], params).then_some(d_x)
}

/// Returns `None` if no library supports the problem. `weight` is the shape of the weights.
pub fn backward_weights<R: GpuRuntime>(
    x: &CubeTensor<R>,
    weight: [usize; 5],
    grad: &CubeTensor<R>,
    params: ConvParams,
) -> Option<CubeTensor<R>> {
    R::has_convolutions(&x.device).then_some(())?;
    let (x, grad) = (contiguous(x.clone()), contiguous(grad.clone()));
    let [c_out, c_in, kz, ky, kx] = weight;
    // Weight gradients are sums over all voxels, so f32 is used if the library supports it.
    [DType::F32, x.dtype].into_iter().find_map(|dtype| {
        let d_weight = allocate(&x, [c_out, kz, ky, kx, c_in], dtype);
        let is_done = R::convolution(ConvPass::BackwardWeights, [&x, &d_weight, &grad], params);
        is_done.then(|| channels_first(d_weight))
    })
}

/// A transposed convolution whose kernel equals its stride is the input gradient of a convolution without padding.
pub fn transposed(weight: [usize; 5]) -> ConvParams {
    let [_, _, z, y, x] = weight;
    ConvParams { stride: [z, y, x], padding: [0; 3], bias_cancels: false }
}

/// Transposes `(a, rows, columns)` to `(a, columns, rows)`; one unit per value.
#[cube(launch)]
fn transpose<I: Float, O: Float>(
    from: &Array<I>,
    to: &mut Array<O>,
    rows: usize,
    columns: usize,
    #[define(I, O)] _dtypes: [StorageType; 2],
) {
    let place = ABSOLUTE_POS;
    if place >= to.len() {
        terminate!();
    }
    let row = place % rows;
    let column = place / rows % columns;
    let block = place / (rows * columns);
    to[place] = O::cast_from(from[(block * rows + row) * columns + column]);
}

/// Converts `(a, b, kz, ky, kx)` in f32 to `(a, kz, ky, kx, b)` in `dtype`.
pub fn channels_last<R: CubeRuntime>(weight: CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    let [a, b, z, y, x] = weight.shape().dims();
    transposed_weight(weight, [a, z, y, x, b], (b, z * y * x), dtype)
}

/// Converts `(a, kz, ky, kx, b)` to `(a, b, kz, ky, kx)` in f32.
pub fn channels_first<R: CubeRuntime>(weight: CubeTensor<R>) -> CubeTensor<R> {
    let [a, z, y, x, b] = weight.shape().dims();
    transposed_weight(weight, [a, b, z, y, x], (z * y * x, b), DType::F32)
}

/// Transposes the last axes, seen as `(rows, columns)`, to a tensor of the given shape and type.
fn transposed_weight<R: CubeRuntime>(
    from: CubeTensor<R>,
    shape: [usize; 5],
    (rows, columns): (usize, usize),
    dtype: DType,
) -> CubeTensor<R> {
    let from = contiguous(from);
    let to = allocate(&from, shape, dtype);
    let (count, dim) = elementwise(shape.iter().product());
    let dtypes = [from.dtype.into(), dtype.into()];
    transpose::launch::<R>(
        &to.client,
        count,
        dim,
        from.into_array_arg(),
        to.clone().into_array_arg(),
        rows,
        columns,
        dtypes,
    );
    to
}

/// Adds the bias to each voxel; one unit per vector.
#[cube(launch)]
fn add_bias_kernel<F: Float, N: Size>(
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

/// Sums over the rows of a cube.
#[cube(launch)]
fn partial_sums<F: Float, N: Size>(
    grad: &Array<Vector<F, N>>,
    partials: &mut Array<Vector<f32, N>>,
    rows: Rows,
    #[define(F)] _dtype: StorageType,
) {
    let unit = rows.unit();
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut row = unit.begin;
    while row < unit.end {
        sum += Vector::<f32, N>::cast_from(grad[unit.base + row * rows.columns]);
        row += unit.stride;
    }
    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime!(UNITS));
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if unit.is_first {
        for row in 1..unit.stride {
            sum += shared[row * rows.columns + unit.column];
        }
        partials[CUBE_POS_X as usize * rows.columns + unit.column] = sum;
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
pub fn add_bias<R: CubeRuntime>(x: CubeTensor<R>, bias: CubeTensor<R>) -> CubeTensor<R> {
    let (x, bias) = (contiguous(x), contiguous(bias));
    let channels = bias.shape()[0];
    let size = vector_size(channels, &[x.dtype, DType::F32]);
    let y = reuse(&x);
    let (count, dim) = elementwise(x.shape().num_elements() / size);
    let dtype = x.dtype;
    add_bias_kernel::launch::<R>(
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
pub fn bias_gradient<R: CubeRuntime>(grad: CubeTensor<R>) -> Option<CubeTensor<R>> {
    let [n, z, y, x, channels] = grad.shape().dims();
    let size = vector_size(channels, &[grad.dtype, DType::F32]);
    let geometry = RowGeometry::new(1, n * z * y * x, channels / size)?;
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
        geometry.arg(),
        dtype.into(),
    );
    let sums = allocate(&partials, [channels], DType::F32);
    let (count, dim) = elementwise(geometry.columns);
    total_sums::launch::<R>(
        &sums.client,
        count,
        dim,
        size,
        partials.into_array_arg(),
        sums.clone().into_array_arg(),
        geometry.columns,
        geometry.parts(),
    );
    Some(sums)
}

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use burn::backend::Vulkan;
    use burn::tensor::{Tensor, TensorPrimitive};

    use super::*;

    #[test]
    fn channels_first_inverts_channels_last() {
        let device = Default::default();
        let values: Vec<f32> = (0..2 * 3 * 8).map(|value| value as f32).collect();
        let weight = Tensor::<Vulkan, 1>::from_data(values.as_slice(), &device).reshape([2, 3, 2, 2, 2]);
        let tensor = |primitive| Tensor::<Vulkan, 5>::from_primitive(TensorPrimitive::Float(primitive));
        let there = channels_last(weight.clone().into_primitive().tensor(), DType::F32);
        assert_eq!(tensor(there.clone()).into_data(), weight.clone().permute([0, 2, 3, 4, 1]).into_data());
        assert_eq!(tensor(channels_first(there)).into_data(), weight.into_data());
    }
}
