//! Gradients at the moment they are ready, while the backward pass goes on.
//!
//! A tap is an identity on the activations that enter a layer. Its backward step runs right after the layer's own, in
//! which the layer's parameters have got their gradients, and hands these on. (Were it an operation on the parameters, it
//! would run last: the backward pass goes by depth, and parameters are the leaves.)

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

/// Takes gradients while the backward pass goes on.
pub trait GradientSink<B: Backend>: Send + Sync {
    /// The gradient of a parameter is ready. It is not kept anywhere else.
    fn ready(&self, parameter: usize, gradient: FloatTensor<B>);
}

/// A backend whose backward pass can be tapped.
pub trait TapGradients: AutodiffBackend {
    /// `x` itself. On the way back, the gradients that `parameters` have by then go to the sink, under their numbers.
    ///
    /// Where `x` does not depend on anything that has a gradient, nothing happens on the way back.
    fn tap(
        x: FloatTensor<Self>,
        parameters: Vec<(usize, FloatTensor<Self>)>,
        sink: Arc<dyn GradientSink<Self::InnerBackend>>,
    ) -> FloatTensor<Self>;
}

/// [`TapGradients::tap`] on a tensor.
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

/// What a tap hands on, and to whom.
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
