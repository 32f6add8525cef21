//! Named parameter tensors of a network.

use burn::tensor::{
    Tensor, TensorData, TensorPrimitive,
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

use crate::ops::host;

/// Name and shape of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Name in nnU-Net's `state_dict`, e.g. `encoder.stages.0.0.convs.0.conv.weight`.
    pub name: String,
    /// Shape: convolutions `(c_out, c_in, z, y, x)`, transposed convolutions `(c_in, c_out, z, y, x)`, all others
    /// `(c)`.
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values; never true for a network's parameters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Values of a named tensor on the host, in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorState {
    /// Name and shape.
    pub spec: ParameterSpec,
    /// The values.
    pub values: Vec<f32>,
}

impl TensorState {
    /// Uploads the values to a device.
    pub fn upload<B: Backend>(&self, device: &B::Device) -> FloatTensor<B> {
        B::float_from_data(TensorData::new(self.values.clone(), self.spec.shape.clone()), device)
    }
}

/// The weights do not fit the network.
#[derive(Debug, thiserror::Error)]
#[error("weights do not fit the network: {0}")]
pub struct StateError(pub String);

/// A named parameter tensor on the device.
#[derive(Clone, Debug)]
pub struct Parameter<B: Backend> {
    /// Name and shape.
    pub spec: ParameterSpec,
    value: FloatTensor<B>,
}

impl<B: Backend> Parameter<B> {
    /// Creates a parameter from values in C order and uploads them.
    pub fn new(spec: ParameterSpec, values: Vec<f32>, device: &B::Device) -> Self {
        let value = B::float_from_data(TensorData::new(values, spec.shape.clone()), device);
        Self { spec, value }
    }

    /// Returns the tensor; `D` is the rank of its shape.
    pub fn tensor<const D: usize>(&self) -> Tensor<B, D> {
        Tensor::from_primitive(TensorPrimitive::Float(self.value.clone()))
    }

    /// Returns the tensor primitive, of any rank.
    pub fn tensor_primitive(&self) -> FloatTensor<B> {
        self.value.clone()
    }

    /// Downloads the values.
    pub fn state(&self) -> TensorState {
        TensorState { spec: self.spec.clone(), values: host::<B>(self.value.clone()) }
    }
}

impl<B: AutodiffBackend> Parameter<B> {
    /// Returns the tensor detached from the autodiff graph.
    pub fn inner(&self) -> FloatTensor<B::InnerBackend> {
        B::inner(self.value.clone())
    }

    /// Replaces the value and tracks its gradient in the next backward pass.
    pub fn set(&mut self, value: FloatTensor<B::InnerBackend>) {
        self.value = B::float_set_require_grad(B::from_inner(value), true);
    }

    /// Returns the parameter on the inner backend, without autodiff.
    pub fn valid(&self) -> Parameter<B::InnerBackend> {
        Parameter { spec: self.spec.clone(), value: self.inner() }
    }

    /// Removes and returns the parameter's gradient; `None` if the loss does not depend on it.
    pub fn take_gradient(&self, gradients: &mut B::Gradients) -> Option<FloatTensor<B::InnerBackend>> {
        B::grad_remove(&self.value, gradients)
    }
}
