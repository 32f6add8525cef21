//! A named tensor of a network.

use burn::tensor::{
    Tensor, TensorData, TensorPrimitive,
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};

use crate::ops::host;

/// Name and shape of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// As in nnU-Net's `state_dict`, e.g. `encoder.stages.0.0.convs.0.conv.weight`.
    pub name: String,
    /// `(c_out, c_in, z, y, x)` of convolutions, `(c_in, c_out, z, y, x)` of transposed ones, `(c)` of all else.
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none; never the case in a network.
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
    /// The values on a device.
    pub fn upload<B: Backend>(&self, device: &B::Device) -> FloatTensor<B> {
        B::float_from_data(TensorData::new(self.values.clone(), self.spec.shape.clone()), device)
    }
}

/// Weights that do not fit the network.
#[derive(Debug, thiserror::Error)]
#[error("weights do not fit the network: {0}")]
pub struct StateError(pub String);

/// A named tensor of a network, on the device.
#[derive(Clone, Debug)]
pub struct Parameter<B: Backend> {
    /// Name and shape.
    pub spec: ParameterSpec,
    value: FloatTensor<B>,
}

impl<B: Backend> Parameter<B> {
    /// Uploads values given in C order.
    pub fn new(spec: ParameterSpec, values: Vec<f32>, device: &B::Device) -> Self {
        let value = B::float_from_data(TensorData::new(values, spec.shape.clone()), device);
        Self { spec, value }
    }

    /// The tensor; `D` is the rank of its shape.
    pub fn tensor<const D: usize>(&self) -> Tensor<B, D> {
        Tensor::from_primitive(TensorPrimitive::Float(self.value.clone()))
    }

    /// The tensor, whatever its rank.
    pub fn tensor_primitive(&self) -> FloatTensor<B> {
        self.value.clone()
    }

    /// Downloads the values.
    pub fn state(&self) -> TensorState {
        TensorState { spec: self.spec.clone(), values: host::<B>(self.value.clone()) }
    }
}

impl<B: AutodiffBackend> Parameter<B> {
    /// The tensor without its place in the graph.
    pub fn inner(&self) -> FloatTensor<B::InnerBackend> {
        B::inner(self.value.clone())
    }

    /// Replaces the value by one whose gradient the next backward pass will give.
    pub fn set(&mut self, value: FloatTensor<B::InnerBackend>) {
        self.value = B::float_set_require_grad(B::from_inner(value), true);
    }

    /// The parameter on the backend without differentiation.
    pub fn valid(&self) -> Parameter<B::InnerBackend> {
        Parameter { spec: self.spec.clone(), value: self.inner() }
    }

    /// Takes the parameter's gradient; `None` if the loss does not depend on it.
    pub fn take_gradient(&self, gradients: &mut B::Gradients) -> Option<FloatTensor<B::InnerBackend>> {
        B::grad_remove(&self.value, gradients)
    }
}
