//! Compiled convolutions: one primitive per pass and shape, with its memory objects.
//!
//! Activations stay channels-last, and oneDNN chooses the layout of the weights. Weights and their gradients are
//! therefore reordered on each run, from or to PyTorch's order.

use std::ffi::c_int;

use super::super::element::ActivationElement;
use super::engine::{ConvTensors, Engine, Failure, Window};
use super::ffi::{
    ARG_BIAS, ARG_DIFF_BIAS, ARG_DIFF_DST, ARG_DIFF_SRC, ARG_DIFF_WEIGHTS, ARG_DST, ARG_SRC, ARG_WEIGHTS, DataType,
    Handle, MEMORY_ALLOCATE, Md, MemoryDesc, QUERY_DIFF_WEIGHTS, QUERY_WEIGHTS,
};
use crate::ops::ConvPass;

/// Shape of a convolution, for any of its three passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OneDnnConv {
    /// Type of input, output and their gradients. Weights, bias and their gradients are f32 at the interface.
    pub data: DataType,
    /// Number of samples.
    pub n: usize,
    /// Channels of the convolution's input.
    pub c_in: usize,
    /// Channels of the convolution's output.
    pub c_out: usize,
    /// Extent of the input, `(z, y, x)`.
    pub input: [usize; 3],
    /// Extent of the output.
    pub output: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub padding: [usize; 3],
}

impl OneDnnConv {
    /// Number of spatial axes. If the z axis is trivial, the problem is 2D, for which oneDNN has faster kernels.
    fn spatial_rank(&self) -> usize {
        if self.input[0] == 1 && self.output[0] == 1 && self.kernel[0] == 1 && self.padding[0] == 0 { 2 } else { 3 }
    }

    /// Returns `(n, c)` and a spatial extent as dimensions of oneDNN.
    fn dims(&self, n: usize, c: usize, extent: [usize; 3]) -> Vec<i64> {
        [n as i64, c as i64].into_iter().chain(self.axes(extent)).collect()
    }

    /// Returns the values of the axes that oneDNN sees.
    fn axes(&self, values: [usize; 3]) -> Vec<i64> {
        values[3 - self.spatial_rank()..].iter().map(|&value| value as i64).collect()
    }

    /// Returns stride and padding.
    fn window(&self) -> Window {
        let padding_after = (3 - self.spatial_rank()..3).map(|axis| self.padding_after(axis)).collect();
        Window { stride: self.axes(self.stride), padding_before: self.axes(self.padding), padding_after }
    }

    /// Zero padding after the input; negative if the last window ends before the end of the input.
    fn padding_after(&self, axis: usize) -> i64 {
        let reach = (self.output[axis] - 1) * self.stride[axis] + self.kernel[axis];
        reach as i64 - self.input[axis] as i64 - self.padding[axis] as i64
    }

    /// Panics if the lengths of a call's slices are not those of the tensors.
    pub(super) fn check<T: ActivationElement>(&self, src: usize, weights: usize, dst: usize) {
        let volume = |extent: [usize; 3]| extent.iter().product::<usize>();
        assert_eq!(self.data, T::ONEDNN);
        assert_eq!(src, self.n * self.c_in * volume(self.input), "input of {self:?}");
        assert_eq!(weights, self.c_out * self.c_in * volume(self.kernel), "weights of {self:?}");
        assert_eq!(dst, self.n * self.c_out * volume(self.output), "output of {self:?}");
    }
}

/// A compiled convolution pass with its memory objects.
pub(super) struct Primitive {
    pub(super) handle: Handle,
    /// Argument indices and memory objects, whose data pointers are set before each run.
    pub(super) operands: Vec<(c_int, Handle)>,
    /// Weights in the primitive's layout, with the reorder from or to PyTorch's layout.
    pub(super) weights: WeightsMemory,
}

/// Memory objects of the weights or of their gradients.
pub(super) struct WeightsMemory {
    pub(super) argument: c_int,
    /// Weights in PyTorch's layout; the data pointer is the caller's.
    pub(super) plain: Handle,
    /// Weights in the primitive's layout, owned by oneDNN.
    pub(super) packed: Handle,
    pub(super) reorder: Handle,
}

// SAFETY: only used under the lock of the library's primitives.
unsafe impl Send for Primitive {}
// SAFETY: as above.
unsafe impl Sync for Primitive {}

/// Memory descriptors of a convolution.
struct Layouts {
    /// Input or its gradient, channels-last.
    src: MemoryDesc,
    /// Output or its gradient, channels-last.
    dst: MemoryDesc,
    bias: MemoryDesc,
    /// Weights or their gradients in PyTorch's order, f32.
    weights_plain: MemoryDesc,
    /// Weights in the activations' type, in oneDNN's layout.
    weights: MemoryDesc,
    /// Weight gradients in f32, in oneDNN's layout.
    weight_gradients: MemoryDesc,
}

impl Layouts {
    fn new(engine: &Engine, conv: &OneDnnConv) -> Self {
        let weights = conv.dims(conv.c_out, conv.c_in, conv.kernel);
        Self {
            src: engine.channels_last(conv.data, &conv.dims(conv.n, conv.c_in, conv.input)),
            dst: engine.channels_last(conv.data, &conv.dims(conv.n, conv.c_out, conv.output)),
            bias: engine.strided(DataType::F32, &[conv.c_out as i64], &[1]),
            weights_plain: engine.c_order(DataType::F32, &weights),
            weights: engine.any_layout(conv.data, &weights),
            weight_gradients: engine.any_layout(DataType::F32, &weights),
        }
    }

    /// Returns the tensors with a descriptor of the weights or of their gradients.
    fn with<'a>(&'a self, weights: &'a MemoryDesc) -> ConvTensors<'a> {
        ConvTensors { src: &self.src, weights, bias: &self.bias, dst: &self.dst }
    }

    /// Returns the argument indices and descriptors of a pass's tensors, but for the weights.
    fn operands(&self, pass: ConvPass) -> Vec<(c_int, &MemoryDesc)> {
        match pass {
            ConvPass::Forward => vec![(ARG_SRC, &self.src), (ARG_BIAS, &self.bias), (ARG_DST, &self.dst)],
            ConvPass::BackwardInput => vec![(ARG_DIFF_DST, &self.dst), (ARG_DIFF_SRC, &self.src)],
            ConvPass::BackwardWeights => {
                vec![(ARG_SRC, &self.src), (ARG_DIFF_DST, &self.dst), (ARG_DIFF_BIAS, &self.bias)]
            }
        }
    }
}

impl WeightsMemory {
    /// Creates the memory of a pass's weights or weight gradients, and their reorder, from the pass's descriptor.
    fn new(engine: &Engine, pass: ConvPass, desc: Handle, layouts: &Layouts) -> Self {
        let (query, argument) = match pass {
            ConvPass::Forward | ConvPass::BackwardInput => (QUERY_WEIGHTS, ARG_WEIGHTS),
            ConvPass::BackwardWeights => (QUERY_DIFF_WEIGHTS, ARG_DIFF_WEIGHTS),
        };
        let plain: Md = &layouts.weights_plain;
        // SAFETY: `desc` is alive, and so is the descriptor that it returns; `plain` is initialized; the reorder's
        // descriptor is destroyed once.
        unsafe {
            let packed: Md = (engine.functions.dnnl_primitive_desc_query_md)(desc, query, 0);
            let (from, to) = if pass == ConvPass::BackwardWeights { (packed, plain) } else { (plain, packed) };
            let reorder_desc = engine.reorder_desc(from, to);
            let weights = Self {
                argument,
                plain: engine.memory(plain, 0),
                packed: engine.memory(packed, MEMORY_ALLOCATE),
                reorder: engine.compile(reorder_desc),
            };
            engine.destroy(reorder_desc);
            weights
        }
    }
}

impl Primitive {
    /// Compiles a pass of a convolution.
    pub(super) fn new(engine: &Engine, pass: ConvPass, conv: &OneDnnConv) -> Self {
        let (layouts, window) = (Layouts::new(engine, conv), conv.window());
        let tensors = layouts.with(&layouts.weights);
        // The backward passes are described with the forward pass as a hint.
        let forward = engine.forward_desc(&tensors, &window).unwrap_or_else(Failure::panic);
        let desc = match pass {
            ConvPass::Forward => Ok(forward),
            ConvPass::BackwardInput => engine.backward_input_desc(&tensors, &window, forward),
            ConvPass::BackwardWeights => {
                engine.backward_weights_desc(&layouts.with(&layouts.weight_gradients), &window, forward)
            }
        };
        let desc = desc.unwrap_or_else(Failure::panic);
        let weights = WeightsMemory::new(engine, pass, desc, &layouts);
        // SAFETY: the descriptors of `layouts` are initialized, those of the passes are alive and destroyed once.
        unsafe {
            let operands = layouts.operands(pass).into_iter();
            let operands = operands.map(|(argument, md)| (argument, engine.memory(md, 0))).collect();
            let handle = engine.compile(desc);
            engine.destroy(desc);
            if desc != forward {
                engine.destroy(forward);
            }
            Self { handle, operands, weights }
        }
    }

    /// Whether the library has a kernel for the forward pass of a convolution.
    pub(super) fn is_supported(engine: &Engine, conv: &OneDnnConv) -> bool {
        let layouts = Layouts::new(engine, conv);
        let Ok(desc) = engine.forward_desc(&layouts.with(&layouts.weights), &conv.window()) else { return false };
        // SAFETY: created above, destroyed once.
        unsafe { engine.destroy(desc) };
        true
    }
}
