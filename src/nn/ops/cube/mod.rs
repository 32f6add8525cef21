//! GPU operations: CubeCL kernels, generic over its runtimes, and convolutions of the vendor's library if the runtime
//! has one, otherwise Burn's.
//!
//! Kernels read and write memory once where possible, compute 16-bit activations in f32 registers, and launch without
//! blocking the host.

mod conv;
#[cfg(feature = "cuda")]
mod cuda;
mod focal;
mod head;
mod loss;
mod loss_target;
mod norm;
mod pointwise;
mod runtime;
mod update;
#[cfg(feature = "vulkan")]
mod vulkan;
mod windows;

use burn::tensor::{FloatDType, TensorMetadata, backend::ops::FloatTensorOps, ops::FloatTensor};
use burn_cubecl::{BoolElement, CubeBackend, tensor::CubeTensor};

#[cfg(feature = "cuda")]
pub use cuda::record_burn_timing;
pub use runtime::GpuRuntime;

use super::{
    AdamStep, ConvParams, DecisionParams, DeviceBuffer, DeviceLoss, DeviceWindows, HeadGradients, NnOps, NormGradients,
    NormParams, SgdStep, WeightGradients, reference,
};

impl<R: GpuRuntime, BT: BoolElement> NnOps for CubeBackend<R, f32, i32, BT> {
    fn conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        params: ConvParams,
    ) -> FloatTensor<Self> {
        match conv::forward(&x, &weight, params) {
            Some(y) if params.bias_cancels => y,
            Some(y) => conv::add_bias(y, bias),
            None => reference::conv::<Self>(x, weight, bias, params),
        }
    }

    fn conv_backward_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: ConvParams,
    ) -> FloatTensor<Self> {
        conv::backward_input(x.shape().dims(), &weight, &grad, params)
            .unwrap_or_else(|| reference::conv_backward_input::<Self>(x, weight, grad, params))
    }

    fn conv_backward_weights(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: ConvParams,
    ) -> WeightGradients<Self> {
        match conv::backward_weights(&x, weight.shape().dims(), &grad, params) {
            Some(weight) => {
                let bias = bias_gradient::<R, BT>(grad, params.bias_cancels);
                WeightGradients { weight, bias }
            }
            None => reference::conv_backward_weights::<Self>(x, weight, grad, params),
        }
    }

    fn conv_transpose(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let [n, z, y, width, _] = x.shape().dims();
        let [_, c_out, kz, ky, kx] = weight.shape().dims();
        let params = conv::transposed(weight.shape().dims());
        let shape = [n, z * kz, y * ky, width * kx, c_out];
        match conv::backward_input(shape, &weight, &x, params) {
            Some(y) => conv::add_bias(y, bias),
            None => reference::conv_transpose::<Self>(x, weight, bias),
        }
    }

    fn conv_transpose_backward_input(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let params = conv::transposed(weight.shape().dims());
        conv::forward(&grad, &weight, params)
            .unwrap_or_else(|| reference::conv_transpose_backward_input::<Self>(weight, grad))
    }

    fn conv_transpose_backward_weights(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> WeightGradients<Self> {
        let shape = weight.shape().dims();
        match conv::backward_weights(&grad, shape, &x, conv::transposed(shape)) {
            Some(weight) => WeightGradients { weight, bias: bias_gradient::<R, BT>(grad, false) },
            None => reference::conv_transpose_backward_weights::<Self>(x, weight, grad),
        }
    }

    fn norm_act(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        params: NormParams,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::norm_act(x.clone(), gamma.clone(), beta.clone(), params)
            .unwrap_or_else(|| reference::norm_act::<Self>(x, gamma, beta, params))
    }

    fn norm_act_backward(
        x: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: NormParams,
    ) -> NormGradients<Self> {
        let [x, statistics, gamma, beta, grad] = [x, statistics, gamma, beta, grad];
        let ours =
            norm::norm_act_backward(x.clone(), statistics.clone(), gamma.clone(), beta.clone(), grad.clone(), params);
        match ours {
            Some([input, gamma, beta]) => NormGradients { input, gamma, beta },
            None => reference::norm_act_backward::<Self>(x, statistics, gamma, beta, grad, params),
        }
    }

    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::concat(a, b)
    }

    fn split(x: FloatTensor<Self>, channels: usize) -> (FloatTensor<Self>, FloatTensor<Self>) {
        pointwise::split(x, channels)
    }

    fn add_leaky_relu(a: FloatTensor<Self>, b: FloatTensor<Self>, negative_slope: f32) -> FloatTensor<Self> {
        pointwise::add_leaky_relu(a, b, negative_slope)
    }

    fn add_leaky_relu_backward(
        y: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        negative_slope: f32,
    ) -> FloatTensor<Self> {
        pointwise::add_leaky_relu_backward(y, grad, negative_slope)
    }

    fn avg_pool(x: FloatTensor<Self>, size: [usize; 3]) -> FloatTensor<Self> {
        pointwise::avg_pool(x, size)
    }

    fn avg_pool_backward(grad: FloatTensor<Self>, size: [usize; 3]) -> FloatTensor<Self> {
        pointwise::avg_pool_backward(grad, size)
    }

    fn head(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        match weight.shape()[0] {
            ..=head::MAX_CLASSES => head::head(x, weight, bias),
            _ => reference::head::<Self>(x, weight, bias),
        }
    }

    fn head_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> HeadGradients<Self> {
        match head::head_backward(x.clone(), weight.clone(), grad.clone()) {
            Some([input, weight, bias]) => HeadGradients { input, weight, bias },
            None => reference::head_backward::<Self>(x, weight, grad),
        }
    }

    fn update_decision(
        gradients: Vec<FloatTensor<Self>>,
        scaler: FloatTensor<Self>,
        params: DecisionParams,
    ) -> [FloatTensor<Self>; 2] {
        update::update_decision(gradients, scaler, params)
    }

    fn sgd(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: Option<FloatTensor<Self>>,
        decision: FloatTensor<Self>,
        step: SgdStep,
    ) -> [FloatTensor<Self>; 2] {
        update::sgd(value, gradient, velocity, decision, step)
    }

    fn adam(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        moments: Option<[FloatTensor<Self>; 2]>,
        decision: FloatTensor<Self>,
        step: AdamStep,
    ) -> [FloatTensor<Self>; 3] {
        update::adam(value, gradient, moments, decision, step)
    }

    fn device_loss() -> Option<DeviceLoss<Self>> {
        Some(DeviceLoss { parts: loss::parts, counts: loss::counts, gradient: loss::gradient })
    }

    fn device_windows() -> Option<DeviceWindows<Self>> {
        Some(DeviceWindows { cut: windows::cut, add: windows::add })
    }

    fn device_buffer(tensor: &FloatTensor<Self>) -> Option<DeviceBuffer> {
        runtime::device_buffer(tensor)
    }
}

/// Returns the gradient of a bias, which is 0 if a following norm cancels the bias.
fn bias_gradient<R: GpuRuntime, BT: BoolElement>(grad: CubeTensor<R>, cancels: bool) -> CubeTensor<R> {
    type B<R, BT> = CubeBackend<R, f32, i32, BT>;
    let channels = grad.shape()[4];
    if cancels {
        return B::<R, BT>::float_zeros([channels].into(), &grad.device, FloatDType::F32);
    }
    conv::bias_gradient(grad.clone()).unwrap_or_else(|| reference::bias_gradient::<B<R, BT>>(grad))
}
