//! Gradient hooks: hand out parameter gradients as soon as they are ready, during the backward pass.
//!
//! A hook is an identity operation on the activations that enter a layer. Its backward step runs right after the
//! layer's, which computes the gradients of the layer's parameters, and passes these gradients to the sink. (A hook on
//! the parameters themselves would run last, because the backward pass proceeds by depth and parameters are leaves.)

use std::fmt;
use std::sync::Arc;

use burn::tensor::{
    Tensor, TensorPrimitive,
    backend::{AutodiffBackend, Backend},
    ops::FloatTensor,
};
use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};

/// Receives gradients during the backward pass.
pub trait GradientSink<B: Backend>: Send + Sync {
    /// Called when a parameter's gradient is ready. The gradient is removed from Burn's gradient container.
    fn ready(&self, parameter: usize, gradient: FloatTensor<B>);
}

/// A backend with gradient hooks.
pub trait TapGradients: AutodiffBackend {
    /// Returns `x`. In the backward pass, the gradients of `parameters` that are ready are passed to `sink`, with the
    /// given indices.
    ///
    /// Has no effect in the backward pass if `x` does not depend on a tensor with a gradient.
    fn tap(
        x: FloatTensor<Self>,
        parameters: Vec<(usize, FloatTensor<Self>)>,
        sink: Arc<dyn GradientSink<Self::InnerBackend>>,
    ) -> FloatTensor<Self>;
}

/// Applies [`TapGradients::tap`] to a tensor.
pub fn tap<B: TapGradients, const D: usize>(
    x: Tensor<B, D>,
    parameters: Vec<(usize, FloatTensor<B>)>,
    sink: Arc<dyn GradientSink<B::InnerBackend>>,
) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(B::tap(x.into_primitive().tensor(), parameters, sink)))
}

impl<B: Backend, C: CheckpointStrategy> TapGradients for Autodiff<B, C> {
    fn tap(
        x: FloatTensor<Self>,
        parameters: Vec<(usize, FloatTensor<Self>)>,
        sink: Arc<dyn GradientSink<B>>,
    ) -> FloatTensor<Self> {
        match Backward::<B, 1>::prepare::<C>(TapStep, [x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(TapState { parameters, sink }, x.primitive),
            OpsKind::UnTracked(prep) => prep.finish(x.primitive),
        }
    }
}

#[derive(Debug)]
struct TapStep;

/// Parameters of a hook and the sink of their gradients.
struct TapState<B: Backend> {
    parameters: Vec<(usize, FloatTensor<Autodiff<B>>)>,
    sink: Arc<dyn GradientSink<B>>,
}

impl<B: Backend> Backward<B, 1> for TapStep {
    type State = TapState<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, grad);
        }
        for (number, parameter) in &ops.state.parameters {
            if let Some(gradient) = grads.remove::<B>(parameter) {
                ops.state.sink.ready(*number, gradient);
            }
        }
    }
}

impl<B: Backend> Clone for TapState<B> {
    fn clone(&self) -> Self {
        Self { parameters: self.parameters.clone(), sink: self.sink.clone() }
    }
}

impl<B: Backend> fmt::Debug for TapState<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.parameters.iter().map(|(number, _)| number).collect();
        f.debug_tuple("TapState").field(&numbers).finish()
    }
}
