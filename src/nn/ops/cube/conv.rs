//! Convolutions with the vendor's library if the runtime has one and it is faster, otherwise Burn's kernels.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;

use super::super::{ConvParams, ConvPass};
use super::launch::{allocate, contiguous};
use super::runtime::GpuRuntime;
use super::weights;

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
    let weight = weights::channels_last(weight.clone(), x.dtype);
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
    let weight = weights::channels_last(weight.clone(), grad.dtype);
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
        is_done.then(|| weights::channels_first(d_weight))
    })
}

/// A transposed convolution whose kernel equals its stride is the input gradient of a convolution without padding.
pub fn transposed(weight: [usize; 5]) -> ConvParams {
    let [_, _, z, y, x] = weight;
    ConvParams { stride: [z, y, x], padding: [0; 3], bias_cancels: false }
}
