//! The operations on CPUs: convolutions by oneDNN where it is installed, everything else in fused loops over
//! channels-last memory, parallel with rayon.
//!
//! Results do not depend on the number of threads: work is cut into blocks of fixed size whose partial sums are added in
//! order. (oneDNN's own reductions depend on its thread count, which a run keeps.)

mod concat;
mod conv;
mod norm;
pub mod onednn;

use burn::backend::Flex;
use burn::tensor::{DType, Shape, ops::FloatTensor};
use burn_flex::{FlexTensor, Layout};

use super::{ConvParams, NnOps, NormGradients, NormParams, WeightGradients, reference};

impl NnOps for Flex {
    fn conv(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, params: ConvParams) -> FlexTensor {
        match onednn::library() {
            Some(library) => conv::forward(library, x, weight, bias, params),
            None => reference::conv::<Self>(x, weight, bias, params),
        }
    }

    fn conv_backward_input(x: FlexTensor, weight: FlexTensor, grad: FlexTensor, params: ConvParams) -> FlexTensor {
        match onednn::library() {
            Some(library) => conv::backward_input(library, dims(&x), weight, grad, params),
            None => reference::conv_backward_input::<Self>(x, weight, grad, params),
        }
    }

    fn conv_backward_weights(
        x: FlexTensor,
        weight: FlexTensor,
        grad: FlexTensor,
        params: ConvParams,
    ) -> WeightGradients<Self> {
        match onednn::library() {
            Some(library) => conv::backward_weights(library, x, dims(&weight), grad, params),
            None => reference::conv_backward_weights::<Self>(x, weight, grad, params),
        }
    }

    fn conv_transpose(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        match onednn::library() {
            Some(library) => conv::transpose_forward(library, x, weight, bias),
            None => reference::conv_transpose::<Self>(x, weight, bias),
        }
    }

    fn conv_transpose_backward_input(weight: FlexTensor, grad: FlexTensor) -> FlexTensor {
        match onednn::library() {
            Some(library) => conv::transpose_backward_input(library, weight, grad),
            None => reference::conv_transpose_backward_input::<Self>(weight, grad),
        }
    }

    fn conv_transpose_backward_weights(x: FlexTensor, weight: FlexTensor, grad: FlexTensor) -> WeightGradients<Self> {
        match onednn::library() {
            Some(library) => conv::transpose_backward_weights(library, x, dims(&weight), grad),
            None => reference::conv_transpose_backward_weights::<Self>(x, weight, grad),
        }
    }

    fn norm_act(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, params: NormParams) -> (FlexTensor, FlexTensor) {
        norm::forward(&x, &gamma, &beta, params)
    }

    fn norm_act_backward(
        x: FlexTensor,
        statistics: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        grad: FlexTensor,
        params: NormParams,
    ) -> NormGradients<Self> {
        norm::backward(&x, &statistics, &gamma, &beta, grad, params)
    }

    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        concat::concat(&a, &b)
    }

    fn split(x: FloatTensor<Self>, channels: usize) -> (FloatTensor<Self>, FloatTensor<Self>) {
        concat::split(&x, channels)
    }
}

/// The shape as an array.
fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let shape = tensor.layout().shape();
    std::array::from_fn(|axis| shape[axis])
}

/// A tensor over a buffer in C order.
fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    debug_assert_eq!(data.len(), shape.iter().product::<usize>());
    let bytes = burn::tensor::Bytes::from_elems(data);
    FlexTensor::new(bytes, Layout::contiguous(Shape::from(shape.to_vec())), DType::F32)
}

/// The tensor in C order, as it is if it already lies so.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The values of a tensor that [`contiguous`] has returned.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous() was called on an f32 tensor")
}

/// An uninitialised buffer of `len` values, for kernels that write every element.
///
/// Zeroing first would cost a pass over memory as long as many of the kernels themselves.
#[allow(clippy::uninit_vec)]
fn buffer(len: usize) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    // SAFETY: the capacity is there, every bit pattern is an f32, and each kernel writes all of it before it is read.
    unsafe { data.set_len(len) };
    data
}
