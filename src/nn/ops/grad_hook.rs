//! Gradient hooks: hand out parameter gradients as soon as they are ready, during the backward pass.
//!
//! A hook is an identity operation on the activations that enter a layer. Its backward step runs right after the
//! layer's, which computes the gradients of the layer's parameters, and passes these gradients to the hook. (A hook on
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
pub trait GradHook<B: Backend>: Send + Sync {
    /// Called when a parameter's gradient is ready. The gradient is removed from Burn's gradient container.
    fn ready(&self, parameter: usize, gradient: FloatTensor<B>);
}

/// A backend with gradient hooks.
pub trait GradHooks: AutodiffBackend {
    /// Returns `x`. In the backward pass, the gradients of `parameters` that are ready are passed to `hook`, with the
    /// given indices.
    ///
    /// Has no effect in the backward pass if `x` does not depend on a tensor with a gradient.
    fn grad_hook(
        x: FloatTensor<Self>,
        parameters: Vec<(usize, FloatTensor<Self>)>,
        hook: Arc<dyn GradHook<Self::InnerBackend>>,
    ) -> FloatTensor<Self>;
}

/// Applies [`GradHooks::grad_hook`] to a tensor.
pub fn grad_hook<B: GradHooks, const D: usize>(
    x: Tensor<B, D>,
    parameters: Vec<(usize, FloatTensor<B>)>,
    hook: Arc<dyn GradHook<B::InnerBackend>>,
) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(B::grad_hook(x.into_primitive().tensor(), parameters, hook)))
}

impl<B: Backend, C: CheckpointStrategy> GradHooks for Autodiff<B, C> {
    fn grad_hook(
        x: FloatTensor<Self>,
        parameters: Vec<(usize, FloatTensor<Self>)>,
        hook: Arc<dyn GradHook<B>>,
    ) -> FloatTensor<Self> {
        match Backward::<B, 1>::prepare::<C>(GradHookBackward, [x.node.clone()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(GradHookState { parameters, hook }, x.primitive),
            OpsKind::UnTracked(prep) => prep.finish(x.primitive),
        }
    }
}

#[derive(Debug)]
struct GradHookBackward;

/// Parameters of a hook and the hook of their gradients.
struct GradHookState<B: Backend> {
    parameters: Vec<(usize, FloatTensor<Autodiff<B>>)>,
    hook: Arc<dyn GradHook<B>>,
}

impl<B: Backend> Backward<B, 1> for GradHookBackward {
    type State = GradHookState<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, grad);
        }
        for (number, parameter) in &ops.state.parameters {
            if let Some(gradient) = grads.remove::<B>(parameter) {
                ops.state.hook.ready(*number, gradient);
            }
        }
    }
}

impl<B: Backend> Clone for GradHookState<B> {
    fn clone(&self) -> Self {
        Self { parameters: self.parameters.clone(), hook: self.hook.clone() }
    }
}

impl<B: Backend> fmt::Debug for GradHookState<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.parameters.iter().map(|(number, _)| number).collect();
        f.debug_tuple("GradHookState").field(&numbers).finish()
    }
}
