//! CPU operations: convolutions with oneDNN if it is installed, everything else as fused loops over channels-last
//! memory, parallelized with rayon.
//!
//! Results do not depend on the number of threads: work is split into blocks of fixed size whose partial sums are added
//! in order. (The reductions of oneDNN depend on its thread count, which is constant during a run.)

mod buffer_pool;
mod conv;
mod element;
mod head;
mod norm;
pub mod onednn;
mod pointwise;
mod tensor;
mod update;

use burn::backend::Flex;
use burn::tensor::{DType, TensorMetadata, bf16, ops::FloatTensor};
use burn_flex::FlexTensor;

use tensor::{contiguous, dims, values};

use super::profile::span;
use super::update::{AdamStep, DecisionParams, SgdStep, UpdateDecision};
use super::{ConvParams, HeadGradients, NnOps, NormGradients, NormParams, WeightGradients, reference};

/// Runs `$run` with `$T` set to the element type of the tensor.
macro_rules! by_type {
    ($tensor:expr, $T:ident => $run:expr) => {
        match $tensor.dtype() {
            DType::F32 => {
                type $T = f32;
                $run
            }
            DType::BF16 => {
                type $T = bf16;
                $run
            }
            other => panic!("activations must be f32 or bf16, not {other:?}"),
        }
    };
}

impl NnOps for Flex {
    fn conv(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, params: ConvParams) -> FlexTensor {
        let _span = span("conv", || describe(&x, &weight, Some(params)));
        match onednn::library_for(x.dtype()) {
            Some(library) => by_type!(x, T => conv::forward::<T>(library, x, weight, bias, params)),
            None => reference::conv::<Self>(x, weight, bias, params),
        }
    }

    fn conv_backward_input(x: FlexTensor, weight: FlexTensor, grad: FlexTensor, params: ConvParams) -> FlexTensor {
        let _span = span("conv_backward_input", || describe(&x, &weight, Some(params)));
        match onednn::library_for(x.dtype()) {
            Some(library) => by_type!(x, T => conv::backward_input::<T>(library, dims(&x), weight, grad, params)),
            None => reference::conv_backward_input::<Self>(x, weight, grad, params),
        }
    }

    fn conv_backward_weights(
        x: FlexTensor,
        weight: FlexTensor,
        grad: FlexTensor,
        params: ConvParams,
    ) -> WeightGradients<Self> {
        let _span = span("conv_backward_weights", || describe(&x, &weight, Some(params)));
        match onednn::library_for(x.dtype()) {
            Some(library) => by_type!(x, T => conv::backward_weights::<T>(library, x, dims(&weight), grad, params)),
            None => reference::conv_backward_weights::<Self>(x, weight, grad, params),
        }
    }

    fn conv_transpose(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let _span = span("conv_transpose", || describe(&x, &weight, None));
        match onednn::library_for(x.dtype()) {
            Some(library) => by_type!(x, T => conv::transpose_forward::<T>(library, x, weight, bias)),
            None => reference::conv_transpose::<Self>(x, weight, bias),
        }
    }

    fn conv_transpose_backward_input(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
        let _span = span("conv_transpose_backward_input", || (shape_of(&grad), 0.0));
        match onednn::library_for(grad.dtype()) {
            Some(library) => by_type!(grad, T => conv::transpose_backward_input::<T>(library, weight, grad)),
            None => reference::conv_transpose_backward_input::<Self>(weight, grad),
        }
    }

    fn conv_transpose_backward_weights(x: FlexTensor, weight: FlexTensor, grad: FlexTensor) -> WeightGradients<Self> {
        let _span = span("conv_transpose_backward_weights", || describe(&x, &weight, None));
        match onednn::library_for(x.dtype()) {
            Some(library) => by_type!(x, T => conv::transpose_backward_weights::<T>(library, x, dims(&weight), grad)),
            None => reference::conv_transpose_backward_weights::<Self>(x, weight, grad),
        }
    }

    fn norm_act(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, params: NormParams) -> (FlexTensor, FlexTensor) {
        let _span = span("norm_act", || (shape_of(&x), 0.0));
        by_type!(x, T => norm::forward::<T>(&x, &gamma, &beta, params))
    }

    fn norm_act_backward(
        x: FlexTensor,
        statistics: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        grad: FlexTensor,
        params: NormParams,
    ) -> NormGradients<Self> {
        let _span = span("norm_act_backward", || (shape_of(&x), 0.0));
        by_type!(x, T => norm::backward::<T>(&x, &statistics, &gamma, &beta, grad, params))
    }

    fn head(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let _span = span("head", || (shape_of(&x), 0.0));
        by_type!(x, T => head::forward::<T>(&x, &weight, &bias))
    }

    fn head_backward(x: FlexTensor, weight: FlexTensor, grad: FlexTensor) -> HeadGradients<Self> {
        let _span = span("head_backward", || (shape_of(&x), 0.0));
        by_type!(x, T => head::backward::<T>(&x, &weight, &grad))
    }

    fn add_leaky_relu(a: FlexTensor, b: FlexTensor, negative_slope: f32) -> FlexTensor {
        let _span = span("add_leaky_relu", || (shape_of(&a), 0.0));
        by_type!(a, T => pointwise::add_leaky_relu::<T>(a, &b, negative_slope))
    }

    fn add_leaky_relu_backward(y: FlexTensor, grad: FlexTensor, negative_slope: f32) -> FlexTensor {
        let _span = span("add_leaky_relu_backward", || (shape_of(&y), 0.0));
        by_type!(y, T => pointwise::add_leaky_relu_backward::<T>(&y, grad, negative_slope))
    }

    fn avg_pool(x: FlexTensor, size: [usize; 3]) -> FlexTensor {
        let _span = span("avg_pool", || (shape_of(&x), 0.0));
        by_type!(x, T => pointwise::avg_pool::<T>(&x, size))
    }

    fn avg_pool_backward(grad: FlexTensor, size: [usize; 3]) -> FlexTensor {
        let _span = span("avg_pool_backward", || (shape_of(&grad), 0.0));
        by_type!(grad, T => pointwise::avg_pool_backward::<T>(&grad, size))
    }

    fn accumulate(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        let _span = span("accumulate", || (shape_of(&a), 0.0));
        by_type!(a, T => pointwise::accumulate::<T>(a, &b))
    }

    fn update_decision(gradients: Vec<FlexTensor>, scaler: FlexTensor, params: DecisionParams) -> [FlexTensor; 2] {
        let _span = span("update_decision", || (gradients.len().to_string(), 0.0));
        let sum = gradients.into_iter().map(update::squared_norm).sum();
        reference::advance::<Self>(sum, scaler, params)
    }

    fn sgd(
        value: FlexTensor,
        gradient: FlexTensor,
        velocity: Option<FlexTensor>,
        decision: FlexTensor,
        step: SgdStep,
    ) -> [FlexTensor; 2] {
        let _span = span("sgd", || (value.shape().num_elements().to_string(), 0.0));
        update::sgd(value, gradient, velocity, decision_from_tensor(decision), step)
    }

    fn adam(
        value: FlexTensor,
        gradient: FlexTensor,
        moments: Option<[FlexTensor; 2]>,
        decision: FlexTensor,
        step: AdamStep,
    ) -> [FlexTensor; 3] {
        let _span = span("adam", || (value.shape().num_elements().to_string(), 0.0));
        update::adam(value, gradient, moments, decision_from_tensor(decision), step)
    }

    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let _span = span("concat", || (shape_of(&a), 0.0));
        by_type!(a, T => pointwise::concat::<T>(&a, &b))
    }

    fn split(x: FloatTensor<Self>, channels: usize) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let _span = span("split", || (shape_of(&x), 0.0));
        by_type!(x, T => pointwise::split::<T>(&x, channels))
    }
}

/// Returns the shape and floating-point operations of a convolution for the profile. `params` is `None` for transposed
/// ones.
fn describe(x: &FlexTensor, weight: &FlexTensor, params: Option<ConvParams>) -> (String, f64) {
    let [first, second, kz, ky, kx] = dims(weight);
    let [n, z, y, width, _] = dims(x);
    let (from, to) = if params.is_some() { (second, first) } else { (first, second) };
    let stride = params.map_or([1; 3], |params| params.stride);
    let voxels = n * z.div_ceil(stride[0]) * y.div_ceil(stride[1]) * width.div_ceil(stride[2]);
    let shape = format!("{n}x {from}->{to} @{z}x{y}x{width} k{kz}{ky}{kx} s{}{}{}", stride[0], stride[1], stride[2]);
    (shape, 2.0 * (voxels * first * second * kz * ky * kx) as f64)
}

fn shape_of(x: &FlexTensor) -> String {
    let [n, z, y, width, c] = dims(x);
    format!("{n}x {c} @{z}x{y}x{width}")
}

fn decision_from_tensor(decision: FlexTensor) -> UpdateDecision {
    UpdateDecision::from_values(values::<f32>(&contiguous(decision)))
}
