//! Tensor operations of a U-Net, with custom kernels.
//!
//! [`NnOps`] extends Burn's backend trait by the forward and backward pass of each operation. Its default methods are
//! the reference implementations of [`mod@reference`], written with Burn's own operations, so a backend need only
//! override the operations it can speed up. [`cpu`] overrides them for `Flex` with oneDNN and fused loops. `autodiff`
//! makes every operation differentiable by calling the inner backend's backward pass. The model uses only the free
//! functions at the end of this file.
//!
//! Activations are channels-last, `(n, z, y, x, c)`: the features of a voxel are contiguous, as convolution kernels for
//! CPUs and tensor cores require, and a norm or a concatenation is one linear pass. Weights keep PyTorch's shapes, so
//! checkpoints can be exchanged. A 2D network is a 3D network with z extent and z kernel 1.

mod autodiff;
pub mod cpu;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "nccl")]
pub mod cudnn;
mod grad_hook;
mod loss;
mod precision;
pub mod profile;
pub mod reference;
mod types;
mod update;
mod windows;

#[cfg(feature = "cubecl")]
pub use cube::GpuRuntime;
#[cfg(feature = "cuda")]
pub use cube::record_burn_timing;
pub use grad_hook::{GradHook, GradHooks, grad_hook};
pub use loss::{DeviceLoss, LossGradientInput, LossParams, LossParts, LossTarget, VoxelLoss};
pub use nnunet_comm::{BufferDtype, DeviceBuffer};
pub use precision::{Precision, allow_tf32, is_tf32_allowed};
pub use types::{ConvParams, ConvPass, HeadGradients, NormGradients, NormParams, WeightGradients, host};
pub use update::{AdamStep, DecisionParams, GradScaler, INITIAL_SCALE, SgdStep, UpdateDecision};
pub use windows::{DeviceWindows, SAMPLE_FIELDS, WindowAccumulateArgs, WindowPosition};

use burn::tensor::{Tensor, backend::Backend, ops::FloatTensor};

use types::{float, primitive};

/// A backend with the forward and backward passes of a U-Net's operations.
///
/// Shapes: activations `(n, z, y, x, c)`; convolution weights `(c_out, c_in, kz, ky, kx)`; transposed convolution
/// weights `(c_in, c_out, kz, ky, kx)`; biases, `gamma` and `beta` `(c)`. Parameters, their gradients and statistics
/// are f32. Activations and their gradients share one type, f32 or 16-bit, which is also the type of the result.
pub trait NnOps: Backend {
    /// Convolution (cross-correlation, as in PyTorch) with bias.
    fn conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        params: ConvParams,
    ) -> FloatTensor<Self> {
        reference::conv::<Self>(x, weight, bias, params)
    }

    /// Gradient of [`NnOps::conv`] with respect to `x`. Only the shape of `x` is used.
    fn conv_backward_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: ConvParams,
    ) -> FloatTensor<Self> {
        reference::conv_backward_input::<Self>(x, weight, grad, params)
    }

    /// Gradients of [`NnOps::conv`] with respect to weight and bias. Only the shape of `weight` is used.
    fn conv_backward_weights(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: ConvParams,
    ) -> WeightGradients<Self> {
        reference::conv_backward_weights::<Self>(x, weight, grad, params)
    }

    /// Transposed convolution with bias. Its kernel equals its stride, so each input voxel fills a separate output
    /// block.
    fn conv_transpose(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::conv_transpose::<Self>(x, weight, bias)
    }

    /// Gradient of [`NnOps::conv_transpose`] with respect to its input.
    fn conv_transpose_backward_input(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::conv_transpose_backward_input::<Self>(weight, grad)
    }

    /// Gradients of [`NnOps::conv_transpose`] with respect to weight and bias. Only the shape of `weight` is used.
    fn conv_transpose_backward_weights(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> WeightGradients<Self> {
        reference::conv_transpose_backward_weights::<Self>(x, weight, grad)
    }

    /// Computes `leaky_relu(instance_norm(x) * gamma + beta)`, with mean and variance over the voxels of each sample
    /// and channel.
    ///
    /// Also returns the statistics for the backward pass: mean and 1 / sqrt(variance + eps), `(2, n, c)`.
    fn norm_act(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        params: NormParams,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::norm_act::<Self>(x, gamma, beta, params)
    }

    /// Gradients of [`NnOps::norm_act`].
    fn norm_act_backward(
        x: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: NormParams,
    ) -> NormGradients<Self> {
        reference::norm_act_backward::<Self>(x, statistics, gamma, beta, grad, params)
    }

    /// Concatenates two activations along the channels.
    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::concat::<Self>(a, b)
    }

    /// Inverse of [`NnOps::concat`]: returns the first `channels` channels and the rest.
    fn split(x: FloatTensor<Self>, channels: usize) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::split::<Self>(x, channels)
    }

    /// Computes `leaky_relu(a + b)`, the end of a residual block. `negative_slope` must be positive.
    fn add_leaky_relu(a: FloatTensor<Self>, b: FloatTensor<Self>, negative_slope: f32) -> FloatTensor<Self> {
        reference::add_leaky_relu::<Self>(a, b, negative_slope)
    }

    /// Gradient of [`NnOps::add_leaky_relu`] with respect to either operand, from its output `y`, which has the sign of the
    /// sum.
    fn add_leaky_relu_backward(
        y: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        negative_slope: f32,
    ) -> FloatTensor<Self> {
        reference::add_leaky_relu_backward::<Self>(y, grad, negative_slope)
    }

    /// Average pooling over blocks of `size` voxels `(z, y, x)`. `size` must divide the extents of `x`.
    fn avg_pool(x: FloatTensor<Self>, size: [usize; 3]) -> FloatTensor<Self> {
        reference::avg_pool::<Self>(x, size)
    }

    /// Gradient of [`NnOps::avg_pool`] with respect to its input.
    fn avg_pool_backward(grad: FloatTensor<Self>, size: [usize; 3]) -> FloatTensor<Self> {
        reference::avg_pool_backward::<Self>(grad, size)
    }

    /// The 1x1x1 convolution from features to logits: weights `(k, c, 1, 1, 1)`, logits `(n, z, y, x, k)`, always f32.
    fn head(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::head::<Self>(x, weight, bias)
    }

    /// Gradients of [`NnOps::head`].
    fn head_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> HeadGradients<Self> {
        reference::head_backward::<Self>(x, weight, grad)
    }

    /// Adds two gradients of the same activation. May reuse the memory of `a`.
    fn accumulate(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(a, b)
    }

    /// Computes the update decision from a step's gradients, which are multiplied by the loss scale. Returns the values
    /// of [`UpdateDecision`] and of the updated [`GradScaler`].
    fn update_decision(
        gradients: Vec<FloatTensor<Self>>,
        scaler: FloatTensor<Self>,
        params: DecisionParams,
    ) -> [FloatTensor<Self>; 2] {
        reference::update_decision::<Self>(gradients, scaler, params)
    }

    /// One SGD step on a parameter of any shape. Returns the new value and velocity, which may reuse the old ones'
    /// memory.
    ///
    /// `velocity` is `None` in the parameter's first step. If `decision` says to skip the update, both are returned
    /// unchanged.
    fn sgd(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: Option<FloatTensor<Self>>,
        decision: FloatTensor<Self>,
        step: SgdStep,
    ) -> [FloatTensor<Self>; 2] {
        reference::sgd::<Self>(value, gradient, velocity, decision, step)
    }

    /// One Adam step on a parameter of any shape. Returns the new value and the two moments, which may reuse the old
    /// ones' memory.
    ///
    /// `moments` is `None` in the parameter's first step. If `decision` says to skip the update, all are returned
    /// unchanged.
    fn adam(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        moments: Option<[FloatTensor<Self>; 2]>,
        decision: FloatTensor<Self>,
        step: AdamStep,
    ) -> [FloatTensor<Self>; 3] {
        reference::adam::<Self>(value, gradient, moments, decision, step)
    }

    /// Loss functions that run on the device; `None` if the host computes the loss.
    fn device_loss() -> Option<DeviceLoss<Self>> {
        None
    }

    /// Sliding-window functions that run on the device; `None` if the host does this work.
    fn device_windows() -> Option<DeviceWindows<Self>> {
        None
    }

    /// Returns a scalar 0 whose backward pass passes `gradient` to `x`. Starts a backward pass from a gradient computed
    /// outside of the graph.
    fn backward_with_grad(x: FloatTensor<Self>, _gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros([1].into(), &Self::float_device(&x), burn::tensor::FloatDType::F32)
    }

    /// Returns the device memory of a tensor, for libraries that work on it in place. All work on the tensor so far has
    /// been submitted to the device when this returns.
    ///
    /// Returns `None` if the backend has no such memory or the tensor is not contiguous.
    fn device_buffer(_tensor: &FloatTensor<Self>) -> Option<DeviceBuffer> {
        None
    }
}

/// [`NnOps::conv`] on tensors.
pub fn conv<B: NnOps>(x: Tensor<B, 5>, weight: Tensor<B, 5>, bias: Tensor<B, 1>, params: ConvParams) -> Tensor<B, 5> {
    float(B::conv(primitive(x), primitive(weight), primitive(bias), params))
}

/// [`NnOps::conv_transpose`] on tensors.
pub fn conv_transpose<B: NnOps>(x: Tensor<B, 5>, weight: Tensor<B, 5>, bias: Tensor<B, 1>) -> Tensor<B, 5> {
    float(B::conv_transpose(primitive(x), primitive(weight), primitive(bias)))
}

/// [`NnOps::norm_act`] on tensors.
pub fn norm_act<B: NnOps>(
    x: Tensor<B, 5>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    params: NormParams,
) -> Tensor<B, 5> {
    float(B::norm_act(primitive(x), primitive(gamma), primitive(beta), params).0)
}

/// [`NnOps::head`] on tensors.
pub fn head<B: NnOps>(x: Tensor<B, 5>, weight: Tensor<B, 5>, bias: Tensor<B, 1>) -> Tensor<B, 5> {
    float(B::head(primitive(x), primitive(weight), primitive(bias)))
}

/// [`NnOps::concat`] on tensors.
pub fn concat<B: NnOps>(a: Tensor<B, 5>, b: Tensor<B, 5>) -> Tensor<B, 5> {
    float(B::concat(primitive(a), primitive(b)))
}

/// [`NnOps::add_leaky_relu`] on tensors.
pub fn add_leaky_relu<B: NnOps>(a: Tensor<B, 5>, b: Tensor<B, 5>, negative_slope: f32) -> Tensor<B, 5> {
    float(B::add_leaky_relu(primitive(a), primitive(b), negative_slope))
}

/// [`NnOps::avg_pool`] on tensors.
pub fn avg_pool<B: NnOps>(x: Tensor<B, 5>, size: [usize; 3]) -> Tensor<B, 5> {
    float(B::avg_pool(primitive(x), size))
}

/// [`NnOps::backward_with_grad`] on tensors.
pub fn backward_with_grad<B: NnOps>(x: Tensor<B, 5>, gradient: Tensor<B, 5>) -> Tensor<B, 1> {
    float(B::backward_with_grad(primitive(x), primitive(gradient)))
}
