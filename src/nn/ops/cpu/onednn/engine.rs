//! Descriptors, memory objects and primitives of oneDNN's CPU engine.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use super::ffi::{
    ALGORITHM_DIRECT, ConvolutionDesc, DataType, Dims, ENGINE_CPU, FORWARD_TRAINING, Functions, Handle, Md, MemoryDesc,
    STREAM_IN_ORDER, TAG_ANY,
};

/// oneDNN's CPU engine, which creates descriptors, memory objects and primitives.
pub(super) struct Engine {
    pub(super) functions: Functions,
    pub(super) handle: Handle,
}

/// Stride and padding of a convolution along its spatial axes.
pub(super) struct Window {
    pub(super) stride: Vec<i64>,
    pub(super) padding_before: Vec<i64>,
    pub(super) padding_after: Vec<i64>,
}

/// Memory descriptors of a convolution's tensors or of their gradients.
pub(super) struct ConvTensors<'a> {
    pub(super) src: &'a MemoryDesc,
    pub(super) weights: &'a MemoryDesc,
    pub(super) bias: &'a MemoryDesc,
    pub(super) dst: &'a MemoryDesc,
}

impl Engine {
    /// Creates the engine; `None` if the library fails.
    pub(super) fn new(functions: Functions) -> Option<Self> {
        let mut handle = null_mut();
        // SAFETY: the out-pointer is valid.
        let status = unsafe { (functions.dnnl_engine_create)(&mut handle, ENGINE_CPU, 0) };
        (status == 0).then_some(Self { functions, handle })
    }

    /// Creates a stream that runs primitives in order; `None` if the library fails.
    pub(super) fn stream(&self) -> Option<Handle> {
        let mut stream = null_mut();
        // SAFETY: the out-pointer is valid and the engine is alive.
        let status = unsafe { (self.functions.dnnl_stream_create)(&mut stream, self.handle, STREAM_IN_ORDER) };
        (status == 0).then_some(stream)
    }

    /// Describes the forward pass. Fails if the library has no kernel for it on this CPU.
    pub(super) fn forward_desc(&self, tensors: &ConvTensors, window: &Window) -> Result<Handle, Failure> {
        let mut descriptor = ConvolutionDesc([0; 8192]);
        let ConvTensors { src, weights, bias, dst } = *tensors;
        let [stride, before, after] = window.pointers();
        // SAFETY: every pointer points to a live value of the type declared in dnnl.h.
        let status = unsafe {
            (self.functions.dnnl_convolution_forward_desc_init)(
                &mut descriptor,
                FORWARD_TRAINING,
                ALGORITHM_DIRECT,
                src,
                weights,
                bias,
                dst,
                stride,
                before,
                after,
            )
        };
        checked(status, "dnnl_convolution_forward_desc_init")?;
        self.primitive_desc(&descriptor, null())
    }

    /// Describes the backward-input pass, given the descriptor of the forward pass.
    pub(super) fn backward_input_desc(
        &self,
        tensors: &ConvTensors,
        window: &Window,
        forward: Handle,
    ) -> Result<Handle, Failure> {
        let mut descriptor = ConvolutionDesc([0; 8192]);
        let ConvTensors { src, weights, dst, .. } = *tensors;
        let [stride, before, after] = window.pointers();
        // SAFETY: as in `forward_desc`.
        let status = unsafe {
            (self.functions.dnnl_convolution_backward_data_desc_init)(
                &mut descriptor,
                ALGORITHM_DIRECT,
                src,
                weights,
                dst,
                stride,
                before,
                after,
            )
        };
        checked(status, "dnnl_convolution_backward_data_desc_init")?;
        self.primitive_desc(&descriptor, forward)
    }

    /// Describes the backward-weights pass, given the descriptor of the forward pass.
    pub(super) fn backward_weights_desc(
        &self,
        tensors: &ConvTensors,
        window: &Window,
        forward: Handle,
    ) -> Result<Handle, Failure> {
        let mut descriptor = ConvolutionDesc([0; 8192]);
        let ConvTensors { src, weights, bias, dst } = *tensors;
        let [stride, before, after] = window.pointers();
        // SAFETY: as in `forward_desc`.
        let status = unsafe {
            (self.functions.dnnl_convolution_backward_weights_desc_init)(
                &mut descriptor,
                ALGORITHM_DIRECT,
                src,
                weights,
                bias,
                dst,
                stride,
                before,
                after,
            )
        };
        checked(status, "dnnl_convolution_backward_weights_desc_init")?;
        self.primitive_desc(&descriptor, forward)
    }

    fn primitive_desc(&self, descriptor: &ConvolutionDesc, hint: *const c_void) -> Result<Handle, Failure> {
        let mut desc = null_mut();
        // SAFETY: the descriptor has been initialized, and the hint is null or a live primitive descriptor.
        let status = unsafe {
            let descriptor = (&raw const *descriptor).cast();
            (self.functions.dnnl_primitive_desc_create)(&mut desc, descriptor, null(), self.handle, hint)
        };
        checked(status, "dnnl_primitive_desc_create").map(|()| desc)
    }

    /// Describes the reorder from one memory layout to another.
    ///
    /// # Safety
    /// Both descriptors must be alive and initialized.
    pub(super) unsafe fn reorder_desc(&self, from: Md, to: Md) -> Handle {
        let mut desc = null_mut();
        let create = self.functions.dnnl_reorder_primitive_desc_create;
        // SAFETY: guaranteed by the caller.
        let status = unsafe { create(&mut desc, from, self.handle, to, self.handle, null()) };
        check(status, "dnnl_reorder_primitive_desc_create");
        desc
    }

    /// Compiles a primitive.
    ///
    /// # Safety
    /// `desc` must be a live primitive descriptor.
    pub(super) unsafe fn compile(&self, desc: Handle) -> Handle {
        let mut handle = null_mut();
        // SAFETY: guaranteed by the caller.
        let status = unsafe { (self.functions.dnnl_primitive_create)(&mut handle, desc) };
        check(status, "dnnl_primitive_create");
        handle
    }

    /// Destroys a primitive descriptor.
    ///
    /// # Safety
    /// `desc` must be a live primitive descriptor, which is not used from now on.
    pub(super) unsafe fn destroy(&self, desc: Handle) {
        // SAFETY: guaranteed by the caller. An error on destruction cannot be handled.
        unsafe { (self.functions.dnnl_primitive_desc_destroy)(desc) };
    }

    /// Creates a memory object; `data` is 0 (set later) or [`MEMORY_ALLOCATE`].
    ///
    /// # Safety
    /// The descriptor must be alive and initialized.
    pub(super) unsafe fn memory(&self, md: Md, data: usize) -> Handle {
        let mut memory = null_mut();
        // SAFETY: guaranteed by the caller.
        let status = unsafe { (self.functions.dnnl_memory_create)(&mut memory, md, self.handle, data) };
        check(status, "dnnl_memory_create");
        memory
    }

    /// Describes memory with the given strides.
    pub(super) fn strided(&self, data: DataType, dims: &[i64], strides: &[i64]) -> MemoryDesc {
        let mut md = MemoryDesc([0; 1024]);
        // SAFETY: both lists have `dims.len()` entries.
        let status = unsafe {
            let rank = dims.len() as c_int;
            (self.functions.dnnl_memory_desc_init_by_strides)(
                &mut md,
                rank,
                dims.as_ptr(),
                data as c_int,
                strides.as_ptr(),
            )
        };
        check(status, "dnnl_memory_desc_init_by_strides");
        md
    }

    /// Describes dimensions `(n, c, ...)` over channels-last memory `(n, ..., c)`.
    pub(super) fn channels_last(&self, data: DataType, dims: &[i64]) -> MemoryDesc {
        let mut strides = vec![0; dims.len()];
        let mut stride = dims[1];
        strides[1] = 1;
        for axis in (2..dims.len()).rev() {
            strides[axis] = stride;
            stride *= dims[axis];
        }
        strides[0] = stride;
        self.strided(data, dims, &strides)
    }

    /// Describes dimensions over memory in C order.
    pub(super) fn c_order(&self, data: DataType, dims: &[i64]) -> MemoryDesc {
        let mut strides = vec![1; dims.len()];
        for axis in (0..dims.len() - 1).rev() {
            strides[axis] = strides[axis + 1] * dims[axis + 1];
        }
        self.strided(data, dims, &strides)
    }

    /// Describes dimensions whose layout oneDNN chooses.
    pub(super) fn any_layout(&self, data: DataType, dims: &[i64]) -> MemoryDesc {
        let mut md = MemoryDesc([0; 1024]);
        // SAFETY: `dims` has the stated length.
        let status = unsafe {
            let rank = dims.len() as c_int;
            (self.functions.dnnl_memory_desc_init_by_tag)(&mut md, rank, dims.as_ptr(), data as c_int, TAG_ANY)
        };
        check(status, "dnnl_memory_desc_init_by_tag");
        md
    }
}

impl Window {
    fn pointers(&self) -> [Dims; 3] {
        [self.stride.as_ptr(), self.padding_before.as_ptr(), self.padding_after.as_ptr()]
    }
}

/// A failed call.
#[derive(Debug)]
pub(super) struct Failure {
    status: c_int,
    call: &'static str,
}

impl Failure {
    /// Panics. Outside of a query of supported kernels, oneDNN fails only on invalid descriptors or exhausted memory,
    /// neither of which is recoverable.
    #[track_caller]
    pub(super) fn panic<T>(self) -> T {
        let Self { status, call } = self;
        panic!("oneDNN: {call} failed with status {status} (1 = out of memory)");
    }
}

fn checked(status: c_int, call: &'static str) -> Result<(), Failure> {
    if status == 0 { Ok(()) } else { Err(Failure { status, call }) }
}

/// Panics if a call failed.
#[track_caller]
pub(super) fn check(status: c_int, call: &'static str) {
    if let Err(failure) = checked(status, call) {
        failure.panic()
    }
}
