//! Parameters and results of the operations, and conversions between tensors, backend primitives and host values.

use burn::tensor::{Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor};

/// Stride and padding of a convolution, `(z, y, x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvParams {
    /// Stride between output voxels.
    pub stride: [usize; 3],
    /// Zero padding on either side of each axis.
    pub padding: [usize; 3],
    /// Whether an instance norm follows, which cancels any bias: the bias may then be skipped and its gradient set
    /// to 0.
    pub bias_cancels: bool,
}

/// ConvPass of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvPass {
    /// Computes the output from input and weights.
    Forward,
    /// Computes the input gradient from weights and output gradient.
    BackwardInput,
    /// Computes the weight gradient from input and output gradient.
    BackwardWeights,
}

/// Parameters of the fused instance norm + leaky ReLU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormParams {
    /// Added to the variance.
    pub eps: f32,
    /// Slope of the leaky ReLU for negative values.
    pub negative_slope: f32,
}

/// Gradients of a convolution with respect to its parameters.
pub struct WeightGradients<B: Backend> {
    /// Same shape as the weights.
    pub weight: FloatTensor<B>,
    /// Shape `(c_out)`.
    pub bias: FloatTensor<B>,
}

/// Gradients of the fused norm with respect to its input and parameters.
pub struct NormGradients<B: Backend> {
    /// Same shape as the input.
    pub input: FloatTensor<B>,
    /// Gradient of the scale, shape `(c)`.
    pub gamma: FloatTensor<B>,
    /// Gradient of the shift, shape `(c)`.
    pub beta: FloatTensor<B>,
}

/// Gradients of a head with respect to its input and parameters.
pub struct HeadGradients<B: Backend> {
    /// Same shape and type as the input.
    pub input: FloatTensor<B>,
    /// Same shape as the weights.
    pub weight: FloatTensor<B>,
    /// Shape `(k)`.
    pub bias: FloatTensor<B>,
}

/// Wraps a backend primitive as a tensor.
pub(super) fn float<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Returns the backend primitive of a tensor.
pub(super) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// Returns a tensor's values in C order, converted to f32. Waits for the device.
pub fn host<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let data = burn::tensor::read_sync(B::float_into_data(tensor)).expect("reading back cannot fail");
    data.convert::<f32>().into_vec().expect("converted to f32")
}
