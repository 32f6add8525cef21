//! A convolution as cuDNN sees it: its parameters, and its operation graph of three tensors and one operation.

use std::ffi::c_int;
use std::fmt;

use super::descriptor::{Descriptor, Kind, Name, Value};
use super::library::{CallError, Cudnn, Pointer};
use crate::ops::{BufferDtype, ConvPass};

/// Parameters that determine the kernel of a convolution: cross-correlation with input `(n, z, y, x, c_in)`, weights
/// `(c_out, kz, ky, kx, c_in)` and output `(n, z, y, x, c_out)`, all contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvProblem {
    pub pass: ConvPass,
    pub n: usize,
    /// Spatial extents `(z, y, x)` of the input.
    pub input: [usize; 3],
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    /// Zero padding on either side of each axis.
    pub padding: [usize; 3],
    /// Type of input and output; accumulation is in f32.
    pub dtype: BufferDtype,
    /// Type of the weights. Their gradient may be f32 if the other tensors are 16-bit.
    pub weight_dtype: BufferDtype,
    /// Whether f32 may be multiplied on tensor cores as TF32 (10-bit mantissas).
    pub tf32: bool,
}

impl ConvProblem {
    /// Returns the spatial extents `(z, y, x)` of the output.
    pub fn output(&self) -> [usize; 3] {
        std::array::from_fn(|axis| {
            (self.input[axis] + 2 * self.padding[axis] - self.kernel[axis]) / self.stride[axis] + 1
        })
    }

    /// Returns the number of multiplications and additions.
    pub fn flops(&self) -> f64 {
        let volume = |extent: [usize; 3]| extent.iter().product::<usize>() as f64;
        2.0 * self.n as f64 * volume(self.output()) * volume(self.kernel) * (self.c_in * self.c_out) as f64
    }

    /// Whether the weights have another type than input and output.
    pub(super) fn has_mixed_dtypes(&self) -> bool {
        self.weight_dtype != self.dtype
    }

    /// Whether the z axis is trivial, so that cuDNN's 2D kernels apply.
    pub(super) fn is_2d(&self) -> bool {
        self.input[0] == 1 && self.kernel[0] == 1 && self.stride[0] == 1 && self.padding[0] == 0
    }
}

impl fmt::Display for ConvProblem {
    /// Formats the problem as its key in the benchmark cache.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, n, input, c_in, c_out, kernel, stride, padding, dtype, weight_dtype, tf32 } = self;
        let of = |[z, y, x]: [usize; 3]| format!("{z}x{y}x{x}");
        let (input, kernel, stride, padding) = (of(*input), of(*kernel), of(*stride), of(*padding));
        let tf32 = if *tf32 { " tf32" } else { "" };
        write!(f, "{pass:?} {n} {c_in}->{c_out} @{input} kernel {kernel} stride {stride} padding {padding} ")?;
        write!(f, "{dtype:?} weights {weight_dtype:?}{tf32}")
    }
}

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
    pub(super) fn new(library: &'static Cudnn, handle: Pointer, problem: &ConvProblem) -> Result<Self, CallError> {
        let ConvProblem { n, c_in, c_out, .. } = *problem;
        let axes = if problem.is_2d() { 1..3 } else { 0..3 };
        let along = |values: [usize; 3]| -> Vec<i64> { values[axes.clone()].iter().map(|v| *v as i64).collect() };
        let tensor = |id, (first, extent, last), dtype| {
            let extent = along(extent);
            let dimensions: Vec<i64> = [first as i64, last as i64].into_iter().chain(extent).collect();
            tensor(library, id, &dimensions, dtype)
        };
        let tensors = [
            tensor(IDS[0], (n, problem.input, c_in), problem.dtype)?,
            tensor(IDS[1], (c_out, problem.kernel, c_in), problem.weight_dtype)?,
            tensor(IDS[2], (n, problem.output(), c_out), problem.dtype)?,
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
fn tensor(library: &'static Cudnn, id: i64, dimensions: &[i64], dtype: BufferDtype) -> Result<Descriptor, CallError> {
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
            (Name::TensorType, Value::DataType(data_type(dtype))),
            (Name::TensorDimensions, Value::Ints(dimensions)),
            (Name::TensorStrides, Value::Ints(&strides)),
            (Name::TensorId, Value::Ints(&[id])),
            (Name::TensorAlignment, Value::Ints(&[ALIGNMENT])),
        ],
    )
}

/// `cudnnDataType_t`.
fn data_type(dtype: BufferDtype) -> c_int {
    match dtype {
        BufferDtype::F32 => FLOAT,
        BufferDtype::F16 => 2,
        BufferDtype::Bf16 => 9,
    }
}

fn names(pass: ConvPass) -> (Kind, [Name; 6]) {
    use Name::*;
    match pass {
        ConvPass::Forward => {
            (Kind::Forward, [ForwardAlpha, ForwardBeta, ForwardConvolution, ForwardX, ForwardW, ForwardY])
        }
        ConvPass::BackwardInput => (Kind::BackwardData, [DataAlpha, DataBeta, DataConvolution, DataX, DataW, DataY]),
        ConvPass::BackwardWeights => {
            (Kind::BackwardFilter, [FilterAlpha, FilterBeta, FilterConvolution, FilterX, FilterW, FilterY])
        }
    }
}
