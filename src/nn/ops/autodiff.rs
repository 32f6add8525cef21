//! Autodiff support: on `Autodiff<B>` each operation runs `B`'s forward pass and records `B`'s backward pass.

use burn::tensor::ops::FloatTensor;
use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};

use super::{ConvParams, NnOps, NormParams};

/// Accumulates a gradient of an activation, which may be an input of several operations. (`Gradients::register` would
/// accumulate with Burn's own addition. This is a macro because Burn does not export the node type.)
macro_rules! add_gradient {
    ($B:ty, $grads:expr, $node:expr, $gradient:expr) => {{
        let gradient = $gradient;
        // The container is queried by tensor but uses only the tensor's node.
        let mut key = FloatTensor::<Autodiff<$B>>::new(gradient.clone());
        key.node = $node.clone();
        let before = $grads.remove::<$B>(&key);
        drop(key);
        let sum = match before {
            Some(before) => <$B>::accumulate(before, gradient),
            None => gradient,
        };
        $grads.register::<$B>($node.id, sum);
    }};
}

/// State of a convolution for its backward pass.
#[derive(Clone, Debug)]
struct ConvState<B: NnOps> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    params: ConvParams,
}

#[derive(Debug)]
struct ConvBackward;

impl<B: NnOps> Backward<B, 3> for ConvBackward {
    type State = ConvState<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ConvState { x, weight, params } = ops.state;
        let [node_x, node_weight, node_bias] = ops.parents;
        if let Some(node) = node_x {
            let dx = B::conv_backward_input(x.clone(), weight.clone(), grad.clone(), params);
            add_gradient!(B, grads, node, dx);
        }
        if node_weight.is_some() || node_bias.is_some() {
            let d = B::conv_backward_weights(x, weight, grad, params);
            if let Some(node) = node_weight {
                grads.register::<B>(node.id, d.weight);
            }
            if let Some(node) = node_bias {
                grads.register::<B>(node.id, d.bias);
            }
        }
    }
}

#[derive(Debug)]
struct ConvTransposeBackward;

impl<B: NnOps> Backward<B, 3> for ConvTransposeBackward {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let [node_x, node_weight, node_bias] = ops.parents;
        if let Some(node) = node_x {
            let dx = B::conv_transpose_backward_input(weight.clone(), grad.clone());
            add_gradient!(B, grads, node, dx);
        }
        if node_weight.is_some() || node_bias.is_some() {
            let d = B::conv_transpose_backward_weights(x, weight, grad);
            if let Some(node) = node_weight {
                grads.register::<B>(node.id, d.weight);
            }
            if let Some(node) = node_bias {
                grads.register::<B>(node.id, d.bias);
            }
        }
    }
}

/// State of the fused norm for its backward pass. The normalized values are recomputed from `x`.
#[derive(Clone, Debug)]
struct NormState<B: NnOps> {
    x: FloatTensor<B>,
    statistics: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    params: NormParams,
}

#[derive(Debug)]
struct NormBackward;

impl<B: NnOps> Backward<B, 3> for NormBackward {
    type State = NormState<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let NormState { x, statistics, gamma, beta, params } = ops.state;
        let d = B::norm_act_backward(x, statistics, gamma, beta, grad, params);
        for (node, gradient) in ops.parents.into_iter().zip([d.input, d.gamma, d.beta]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct HeadBackward;

impl<B: NnOps> Backward<B, 3> for HeadBackward {
    /// Input and weights.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let d = B::head_backward(x, weight, grad);
        let [node_x, node_weight, node_bias] = ops.parents;
        if let Some(node) = node_x {
            add_gradient!(B, grads, node, d.input);
        }
        for (node, gradient) in [(node_weight, d.weight), (node_bias, d.bias)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct ConcatBackward;

impl<B: NnOps> Backward<B, 2> for ConcatBackward {
    /// Number of channels of the first input.
    type State = usize;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (a, b) = B::split(grad, ops.state);
        for (node, gradient) in ops.parents.into_iter().zip([a, b]) {
            if let Some(node) = node {
                add_gradient!(B, grads, node, gradient);
            }
        }
    }
}

/// State of `add_leaky_relu` for its backward pass.
#[derive(Clone, Debug)]
struct AddLeakyReluState<B: NnOps> {
    /// Output of the forward pass.
    y: FloatTensor<B>,
    negative_slope: f32,
}

#[derive(Debug)]
struct AddLeakyReluBackward;

impl<B: NnOps> Backward<B, 2> for AddLeakyReluBackward {
    type State = AddLeakyReluState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let gradient = B::add_leaky_relu_backward(ops.state.y, grad, ops.state.negative_slope);
        let [node_a, node_b] = ops.parents;
        if let Some(node) = node_a {
            add_gradient!(B, grads, node, gradient.clone());
        }
        if let Some(node) = node_b {
            add_gradient!(B, grads, node, gradient);
        }
    }
}

#[derive(Debug)]
struct AvgPoolBackward;

impl<B: NnOps> Backward<B, 1> for AvgPoolBackward {
    /// Pooling size.
    type State = [usize; 3];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            add_gradient!(B, grads, node, B::avg_pool_backward(grad, ops.state));
        }
    }
}

#[derive(Debug)]
struct BackwardWithGrad;

impl<B: NnOps> Backward<B, 1> for BackwardWithGrad {
    /// Gradient of the loss with respect to the tensor.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        // The loss is the root of the graph, so its own gradient is 1.
        grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            add_gradient!(B, grads, node, ops.state);
        }
    }
}

impl<B: NnOps, C: CheckpointStrategy> NnOps for Autodiff<B, C> {
    fn conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        params: ConvParams,
    ) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
        let (x, weight) = (x.primitive, weight.primitive);
        let output = B::conv(x.clone(), weight.clone(), bias.primitive, params);
        match Backward::<B, 3>::prepare::<C>(ConvBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(ConvState { x, weight, params }, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn conv_transpose(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
        let (x, weight) = (x.primitive, weight.primitive);
        let output = B::conv_transpose(x.clone(), weight.clone(), bias.primitive);
        match Backward::<B, 3>::prepare::<C>(ConvTransposeBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn norm_act(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        params: NormParams,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node.clone(), gamma.node.clone(), beta.node.clone()];
        let (x, gamma, beta) = (x.primitive, gamma.primitive, beta.primitive);
        let (output, statistics) = B::norm_act(x.clone(), gamma.clone(), beta.clone(), params);
        let untracked_statistics = FloatTensor::<Self>::new(statistics.clone());
        let output = match Backward::<B, 3>::prepare::<C>(NormBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(NormState { x, statistics, gamma, beta, params }, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        };
        (output, untracked_statistics)
    }

    fn head(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node.clone(), weight.node.clone(), bias.node.clone()];
        let (x, weight) = (x.primitive, weight.primitive);
        let logits = B::head(x.clone(), weight.clone(), bias.primitive);
        match Backward::<B, 3>::prepare::<C>(HeadBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, weight), logits),
            OpsKind::UnTracked(prep) => prep.finish(logits),
        }
    }

    fn add_leaky_relu(a: FloatTensor<Self>, b: FloatTensor<Self>, negative_slope: f32) -> FloatTensor<Self> {
        let nodes = [a.node.clone(), b.node.clone()];
        let y = B::add_leaky_relu(a.primitive, b.primitive, negative_slope);
        match Backward::<B, 2>::prepare::<C>(AddLeakyReluBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(AddLeakyReluState { y: y.clone(), negative_slope }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn avg_pool(x: FloatTensor<Self>, size: [usize; 3]) -> FloatTensor<Self> {
        let nodes = [x.node.clone()];
        let y = B::avg_pool(x.primitive, size);
        match Backward::<B, 1>::prepare::<C>(AvgPoolBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(size, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn backward_with_grad(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node.clone()];
        let zero = B::backward_with_grad(x.primitive, gradient.primitive.clone());
        match Backward::<B, 1>::prepare::<C>(BackwardWithGrad, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(gradient.primitive, zero),
            OpsKind::UnTracked(prep) => prep.finish(zero),
        }
    }

    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        use burn::tensor::TensorMetadata;
        let channels = a.primitive.shape()[4];
        let nodes = [a.node.clone(), b.node.clone()];
        let output = B::concat(a.primitive, b.primitive);
        match Backward::<B, 2>::prepare::<C>(ConcatBackward, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(channels, output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}
