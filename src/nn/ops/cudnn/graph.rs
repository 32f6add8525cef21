//! Operation graph of a problem: three tensors, a convolution descriptor and one operation.

use std::ffi::c_int;

use super::descriptor::{Descriptor, Kind, Name, Value};
use super::library::{CallError, Cudnn, Pointer};
use super::problem::Problem;
use crate::ops::{BufferDtype, Pass};

/// Tensor ids: input, weights and output, or their gradients.
pub(super) const IDS: [i64; 3] = [1, 2, 3];
/// Alignment of all tensors in bytes.
const ALIGNMENT: i64 = 16;
/// `CUDNN_CROSS_CORRELATION`.
const CROSS_CORRELATION: c_int = 1;
/// `CUDNN_DATA_FLOAT`.
const FLOAT: c_int = 0;

/// The operation graph and all descriptors it refers to.
pub(super) struct Graph {
    // Fields are dropped in order of declaration: referring descriptors first.
    pub(super) descriptor: Descriptor,
    _operation: Descriptor,
    _convolution: Descriptor,
    _tensors: [Descriptor; 3],
}

impl Graph {
    pub(super) fn new(library: &'static Cudnn, handle: Pointer, problem: &Problem) -> Result<Self, CallError> {
        let Problem { n, c_in, c_out, .. } = *problem;
        let axes = if problem.is_flat() { 1..3 } else { 0..3 };
        let along = |values: [usize; 3]| -> Vec<i64> { values[axes.clone()].iter().map(|v| *v as i64).collect() };
        let tensor = |id, (first, extent, last), element| {
            let extent = along(extent);
            let dimensions: Vec<i64> = [first as i64, last as i64].into_iter().chain(extent).collect();
            tensor(library, id, &dimensions, element)
        };
        let tensors = [
            tensor(IDS[0], (n, problem.input, c_in), problem.element)?,
            tensor(IDS[1], (c_out, problem.kernel, c_in), problem.weight_element)?,
            tensor(IDS[2], (n, problem.output(), c_out), problem.element)?,
        ];
        let (strides, paddings) = (along(problem.stride), along(problem.padding));
        let convolution = Descriptor::with(
            library,
            Kind::Convolution,
            &[
                (Name::ConvolutionComputeType, Value::DataType(FLOAT)),
                (Name::ConvolutionMode, Value::ConvolutionMode(CROSS_CORRELATION)),
                (Name::ConvolutionSpatialDims, Value::Ints(&[strides.len() as i64])),
                (Name::ConvolutionDilations, Value::Ints(&vec![1; strides.len()])),
                (Name::ConvolutionStrides, Value::Ints(&strides)),
                (Name::ConvolutionPrePaddings, Value::Ints(&paddings)),
                (Name::ConvolutionPostPaddings, Value::Ints(&paddings)),
            ],
        )?;
        let (kind, [alpha, beta, of, x, w, y]) = names(problem.pass);
        let operation = Descriptor::with(
            library,
            kind,
            &[
                (of, Value::Descriptors(&[&convolution])),
                (x, Value::Descriptors(&[&tensors[0]])),
                (w, Value::Descriptors(&[&tensors[1]])),
                (y, Value::Descriptors(&[&tensors[2]])),
                (alpha, Value::Float(1.0)),
                (beta, Value::Float(0.0)),
            ],
        )?;
        let descriptor = Descriptor::with(
            library,
            Kind::OperationGraph,
            &[(Name::GraphHandle, Value::Handle(handle)), (Name::GraphOperations, Value::Descriptors(&[&operation]))],
        )?;
        Ok(Self { descriptor, _operation: operation, _convolution: convolution, _tensors: tensors })
    }
}

/// Describes a tensor with cuDNN's dimension order `(first, channels, spatial...)` and channels-last memory.
fn tensor(library: &'static Cudnn, id: i64, dimensions: &[i64], element: BufferDtype) -> Result<Descriptor, CallError> {
    let mut strides = vec![1; dimensions.len()];
    let mut stride = dimensions[1];
    for axis in (2..dimensions.len()).rev() {
        strides[axis] = stride;
        stride *= dimensions[axis];
    }
    strides[0] = stride;
    Descriptor::with(
        library,
        Kind::Tensor,
        &[
            (Name::TensorType, Value::DataType(data_type(element))),
            (Name::TensorDimensions, Value::Ints(dimensions)),
            (Name::TensorStrides, Value::Ints(&strides)),
            (Name::TensorId, Value::Ints(&[id])),
            (Name::TensorAlignment, Value::Ints(&[ALIGNMENT])),
        ],
    )
}

/// `cudnnDataType_t`.
fn data_type(element: BufferDtype) -> c_int {
    match element {
        BufferDtype::F32 => FLOAT,
        BufferDtype::F16 => 2,
        BufferDtype::Bf16 => 9,
    }
}

fn names(pass: Pass) -> (Kind, [Name; 6]) {
    use Name::*;
    match pass {
        Pass::Forward => (Kind::Forward, [ForwardAlpha, ForwardBeta, ForwardConvolution, ForwardX, ForwardW, ForwardY]),
        Pass::BackwardInput => (Kind::BackwardData, [DataAlpha, DataBeta, DataConvolution, DataX, DataW, DataY]),
        Pass::BackwardWeights => {
            (Kind::BackwardFilter, [FilterAlpha, FilterBeta, FilterConvolution, FilterX, FilterW, FilterY])
        }
    }
}
