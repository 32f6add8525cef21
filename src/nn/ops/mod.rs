//! The tensor operations a U-Net is made of, with kernels of our own.
//!
//! [`NnOps`] is the seam: it extends Burn's backend trait by each operation's forward and backward step. Its default
//! bodies are the reference implementations of [`mod@reference`], written in Burn's own operations, so a backend begins
//! complete and overrides what it can do better. [`cpu`] overrides them for `Flex` with oneDNN and fused loops;
//! `autodiff` makes every operation differentiable by calling the inner backend's backward step. The model uses only the
//! functions at the end of this file.
//!
//! Activations are channels-last, `(n, z, y, x, c)`: a voxel's features lie together, which is what convolution kernels
//! on CPUs and tensor cores want, and what makes a norm or a concatenation one linear pass. Weights keep PyTorch's shape,
//! so that checkpoints can be exchanged. A 2D network is a 3D one with z extent and z kernel 1.

mod autodiff;
pub mod cpu;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "nccl")]
pub mod cudnn;
mod host;
mod loss;
mod precision;
pub mod profile;
pub mod reference;
mod tap;
pub mod tf32;
mod update;
mod windows;

pub use tap::{GradientSink, TapGradients, tap};

#[cfg(feature = "cubecl")]
pub use cube::GpuRuntime;
#[cfg(feature = "cuda")]
pub use cube::note_burns;
pub use host::host;
pub use loss::{DeviceLoss, LossGradientInput, LossParts, LossRule, LossTarget, VoxelRule};
pub use nnunet_comm::{DeviceBuffer, Element};
pub use precision::Precision;
pub use update::{AdamStep, Control, ControlRule, INITIAL_SCALE, Scaler, SgdStep};
pub use windows::{DeviceWindows, SAMPLE_NUMBERS, WindowPlace, WindowTerms};

use burn::tensor::{Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

/// Stride and padding of a convolution, `(z, y, x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvParams {
    /// Step between output voxels.
    pub stride: [usize; 3],
    /// Zeros added on either side of each axis.
    pub padding: [usize; 3],
    /// Whether an instance norm follows, which takes any bias away: then it may be left out, and its gradient be 0.
    pub bias_cancels: bool,
}

/// What is computed of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output from input and weights.
    Forward,
    /// The gradient of the input from weights and the output's gradient.
    BackwardInput,
    /// The gradient of the weights from input and the output's gradient.
    BackwardWeights,
}

/// Constants of the fused instance norm + leaky ReLU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormParams {
    /// Added to the variance.
    pub eps: f32,
    /// Slope of the leaky ReLU for negative values.
    pub negative_slope: f32,
}

/// Gradients of a convolution with respect to its parameters.
pub struct WeightGradients<B: Backend> {
    /// Shape of the weights.
    pub weight: FloatTensor<B>,
    /// `(c_out)`.
    pub bias: FloatTensor<B>,
}

/// Gradients of the fused norm with respect to its input and parameters.
pub struct NormGradients<B: Backend> {
    /// Shape of the input.
    pub input: FloatTensor<B>,
    /// `(c)`, of the scale.
    pub gamma: FloatTensor<B>,
    /// `(c)`, of the shift.
    pub beta: FloatTensor<B>,
}

/// Gradients of a head with respect to its input and parameters.
pub struct HeadGradients<B: Backend> {
    /// Shape and type of the input.
    pub input: FloatTensor<B>,
    /// Shape of the weights.
    pub weight: FloatTensor<B>,
    /// `(k)`.
    pub bias: FloatTensor<B>,
}

/// A backend that has the operations of a U-Net, forward and backward.
///
/// Shapes: activations `(n, z, y, x, c)`; convolution weights `(c_out, c_in, kz, ky, kx)`; transposed convolution weights
/// `(c_in, c_out, kz, ky, kx)`; biases, `gamma` and `beta` `(c)`. Parameters, their gradients and statistics are f32;
/// activations and their gradients are all f32 or all of a smaller type, which is that of the result.
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

    /// Gradient of [`NnOps::conv`] with respect to `x`, whose values do not matter, only its shape.
    fn conv_backward_input(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: ConvParams,
    ) -> FloatTensor<Self> {
        reference::conv_backward_input::<Self>(x, weight, grad, params)
    }

    /// Gradient of [`NnOps::conv`] with respect to weight and bias; of `weight` only the shape matters.
    fn conv_backward_weights(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        params: ConvParams,
    ) -> WeightGradients<Self> {
        reference::conv_backward_weights::<Self>(x, weight, grad, params)
    }

    /// Transposed convolution whose kernel equals its stride (each input voxel fills a block of its own), with bias.
    fn conv_transpose(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::conv_transpose::<Self>(x, weight, bias)
    }

    /// Gradient of [`NnOps::conv_transpose`] with respect to its input.
    fn conv_transpose_backward_input(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::conv_transpose_backward_input::<Self>(weight, grad)
    }

    /// Gradient of [`NnOps::conv_transpose`] with respect to weight and bias; of `weight` only the shape matters.
    fn conv_transpose_backward_weights(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> WeightGradients<Self> {
        reference::conv_transpose_backward_weights::<Self>(x, weight, grad)
    }

    /// `leaky_relu(instance_norm(x) * gamma + beta)`; mean and variance over the voxels of each sample and channel.
    ///
    /// Also returns what the backward step needs: mean and 1 / sqrt(variance + eps), `(2, n, c)`.
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

    /// Joins two activations along the channels.
    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::concat::<Self>(a, b)
    }

    /// Undoes [`NnOps::concat`]: the first `channels` channels and the rest.
    fn split(x: FloatTensor<Self>, channels: usize) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::split::<Self>(x, channels)
    }

    /// `leaky_relu(a + b)`: where a residual block's two ways meet. The slope for negative values is above 0.
    fn add_act(a: FloatTensor<Self>, b: FloatTensor<Self>, negative_slope: f32) -> FloatTensor<Self> {
        reference::add_act::<Self>(a, b, negative_slope)
    }

    /// Gradient of [`NnOps::add_act`] with respect to either term, from its output `y`, which has the sign of the sum.
    fn add_act_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>, negative_slope: f32) -> FloatTensor<Self> {
        reference::add_act_backward::<Self>(y, grad, negative_slope)
    }

    /// Means over blocks of `size` voxels `(z, y, x)`, which divides the extents of `x`.
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

    /// The sum of two gradients of one activation, which may take the first one's memory.
    fn accumulate(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(a, b)
    }

    /// What becomes of a step's gradients, which carry the loss scale: the values of [`Control`], and of the [`Scaler`]
    /// after them.
    fn control(
        gradients: Vec<FloatTensor<Self>>,
        scaler: FloatTensor<Self>,
        rule: ControlRule,
    ) -> [FloatTensor<Self>; 2] {
        reference::control::<Self>(gradients, scaler, rule)
    }

    /// One step of SGD on a parameter of any shape: its new value and velocity, which may take the old one's memory.
    ///
    /// Without a velocity it is the parameter's first step. Where the control says so, both stay as they are.
    fn sgd(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: Option<FloatTensor<Self>>,
        control: FloatTensor<Self>,
        step: SgdStep,
    ) -> [FloatTensor<Self>; 2] {
        reference::sgd::<Self>(value, gradient, velocity, control, step)
    }

    /// One step of Adam on a parameter of any shape: its new value and two moments, which may take the old ones' memory.
    ///
    /// Without moments it is the parameter's first step. Where the control says so, all stay as they are.
    fn adam(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        moments: Option<[FloatTensor<Self>; 2]>,
        control: FloatTensor<Self>,
        step: AdamStep,
    ) -> [FloatTensor<Self>; 3] {
        reference::adam::<Self>(value, gradient, moments, control, step)
    }

    /// The loss on the device; `None` where the host computes it.
    fn device_loss() -> Option<DeviceLoss<Self>> {
        None
    }

    /// What inference does with windows on the device. `None` leaves it to the host.
    fn device_windows() -> Option<DeviceWindows<Self>> {
        None
    }

    /// A scalar 0 whose backward step hands `gradient` to `x`: the end of a graph whose loss was computed elsewhere.
    fn seed_gradient(x: FloatTensor<Self>, _gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros([1].into(), &Self::float_device(&x), burn::tensor::FloatDType::F32)
    }

    /// Where a tensor lies in the memory of its device, for a library that works on it in place; all work on it so far has
    /// been handed to the device by then.
    ///
    /// `None` where the backend has no such memory, or where the tensor is not one run of elements in it.
    fn device_buffer(_tensor: &FloatTensor<Self>) -> Option<DeviceBuffer> {
        None
    }
}

fn float<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
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

/// [`NnOps::add_act`] on tensors.
pub fn add_act<B: NnOps>(a: Tensor<B, 5>, b: Tensor<B, 5>, negative_slope: f32) -> Tensor<B, 5> {
    float(B::add_act(primitive(a), primitive(b), negative_slope))
}

/// [`NnOps::avg_pool`] on tensors.
pub fn avg_pool<B: NnOps>(x: Tensor<B, 5>, size: [usize; 3]) -> Tensor<B, 5> {
    float(B::avg_pool(primitive(x), size))
}

/// [`NnOps::seed_gradient`] on tensors.
pub fn seed_gradient<B: NnOps>(x: Tensor<B, 5>, gradient: Tensor<B, 5>) -> Tensor<B, 1> {
    float(B::seed_gradient(primitive(x), primitive(gradient)))
}
