//! Bindings to oneDNN, loaded at run time. This is the only file that calls its C API.
//!
//! The C API of version 2 (`libdnnl.so.2`; Debian 12 has 2.6) passes descriptors by pointer, so they are stored here as
//! opaque blocks of at least their size. Names and constants are from oneDNN 2.6, `dnnl.h` and `dnnl_types.h`.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, OnceLock};

use burn::tensor::DType;

use super::element::ActivationElement;
use crate::ops::Precision;
use crate::ops::profile::in_library;

/// Library names to try.
const LIBRARY_NAMES: [&str; 1] = ["libdnnl.so.2"];

const ENGINE_CPU: c_int = 1;
const STREAM_IN_ORDER: u32 = 1;
const FORWARD_TRAINING: c_int = 64;
const TAG_ANY: c_int = 1;
const ALGORITHM_DIRECT: c_int = 1;
const MEMORY_ALLOCATE: usize = usize::MAX;

const ARG_SRC: c_int = 1;
const ARG_DST: c_int = 17;
const ARG_WEIGHTS: c_int = 33;
const ARG_BIAS: c_int = 41;
const ARG_DIFF_SRC: c_int = 129;
const ARG_DIFF_DST: c_int = 145;
const ARG_DIFF_WEIGHTS: c_int = 161;
const ARG_DIFF_BIAS: c_int = 169;

const QUERY_WEIGHTS: c_int = 131;
const QUERY_DIFF_WEIGHTS: c_int = 132;

/// `dnnl_data_type_t`, only the values in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DataType {
    /// bfloat16, with sums in f32.
    Bf16 = 2,
    /// IEEE single precision.
    F32 = 3,
}

/// `dnnl_memory_desc_t` (696 bytes in 2.6).
#[derive(Clone)]
#[repr(C, align(8))]
struct MemoryDesc([u8; 1024]);

/// `dnnl_convolution_desc_t` (5976 bytes in 2.6).
#[repr(C, align(8))]
struct ConvolutionDesc([u8; 8192]);

/// `dnnl_exec_arg_t`.
#[repr(C)]
struct ExecArg {
    arg: c_int,
    memory: *mut c_void,
}

/// `dnnl_version_t`, only the fields in use.
#[repr(C)]
struct Version {
    major: c_int,
    minor: c_int,
    patch: c_int,
}

type Handle = *mut c_void;
type Md = *const MemoryDesc;
type Dims = *const i64;

/// Declares the C functions in use as a struct of function pointers, loaded by name.
macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Functions {
            /// # Safety
            /// The library must be oneDNN 2.
            unsafe fn load(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: the signatures below are those of dnnl.h.
                unsafe { Ok(Self { $($name: *library.get(stringify!($name).as_bytes())?,)* }) }
            }
        }
    };
}

functions! {
    dnnl_version() -> *const Version;
    dnnl_engine_create(*mut Handle, c_int, usize) -> c_int;
    dnnl_stream_create(*mut Handle, Handle, u32) -> c_int;
    dnnl_stream_wait(Handle) -> c_int;
    dnnl_memory_desc_init_by_strides(*mut MemoryDesc, c_int, Dims, c_int, Dims) -> c_int;
    dnnl_memory_desc_init_by_tag(*mut MemoryDesc, c_int, Dims, c_int, c_int) -> c_int;
    dnnl_convolution_forward_desc_init(
        *mut ConvolutionDesc, c_int, c_int, Md, Md, Md, Md, Dims, Dims, Dims) -> c_int;
    dnnl_convolution_backward_data_desc_init(*mut ConvolutionDesc, c_int, Md, Md, Md, Dims, Dims, Dims) -> c_int;
    dnnl_convolution_backward_weights_desc_init(
        *mut ConvolutionDesc, c_int, Md, Md, Md, Md, Dims, Dims, Dims) -> c_int;
    dnnl_primitive_desc_create(*mut Handle, *const c_void, *const c_void, Handle, *const c_void) -> c_int;
    dnnl_primitive_desc_destroy(Handle) -> c_int;
    dnnl_primitive_desc_query_md(*const c_void, c_int, c_int) -> Md;
    dnnl_reorder_primitive_desc_create(*mut Handle, Md, Handle, Md, Handle, *const c_void) -> c_int;
    dnnl_primitive_create(*mut Handle, Handle) -> c_int;
    dnnl_primitive_execute(*const c_void, Handle, c_int, *const ExecArg) -> c_int;
    dnnl_memory_create(*mut Handle, Md, Handle, usize) -> c_int;
    dnnl_memory_set_data_handle(Handle, *mut c_void) -> c_int;
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ConvPass {
    Forward,
    BackwardInput,
    BackwardWeights,
}

/// The loaded library with its engine, stream and compiled primitives.
pub struct Library {
    functions: Functions,
    engine: Handle,
    stream: Handle,
    /// Compiled primitives. The lock serializes execution: each primitive uses all threads and its own scratch memory.
    primitives: Mutex<HashMap<(ConvPass, OneDnnConv), Arc<Primitive>>>,
    /// Keeps the functions above loaded.
    _library: libloading::Library,
}

// SAFETY: oneDNN's engine and stream may be used from any thread; `primitives` serializes execution.
unsafe impl Send for Library {}
// SAFETY: as for `Send`.
unsafe impl Sync for Library {}

/// Returns the library, or `None` if it is not installed or disabled by `NNUNET_DIST_ONEDNN=0`.
pub fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            if is_disabled() {
                return None;
            }
            Library::open()
        })
        .as_ref()
}

/// Returns the library if it has kernels for this activation type on this CPU (bf16 needs AVX-512).
pub fn library_for(activations: DType) -> Option<&'static Library> {
    static BF16: OnceLock<bool> = OnceLock::new();
    let library = library()?;
    match activations {
        DType::F32 => Some(library),
        DType::BF16 => BF16.get_or_init(|| library.supports(DataType::Bf16)).then_some(library),
        _ => None,
    }
}

/// Whether the library has kernels for this precision on this CPU. Otherwise Burn's own kernels are used.
pub fn has_kernels(precision: Precision) -> bool {
    library_for(precision.activations().into()).is_some()
}

/// Whether the user disabled the library.
pub fn is_disabled() -> bool {
    std::env::var_os("NNUNET_DIST_ONEDNN").is_some_and(|value| value == "0")
}

/// A compiled convolution pass with its memory objects.
struct Primitive {
    handle: Handle,
    /// Argument indices and memory objects, whose data pointers are set before each run.
    operands: Vec<(c_int, Handle)>,
    /// Weights in the primitive's layout, with the reorder from or to PyTorch's layout.
    weights: WeightsMemory,
}

struct WeightsMemory {
    argument: c_int,
    /// Weights in PyTorch's layout; the data pointer is the caller's.
    plain: Handle,
    /// Weights in the primitive's layout, owned by oneDNN.
    packed: Handle,
    reorder: Handle,
}

// SAFETY: only used under `Library::primitives`' lock.
unsafe impl Send for Primitive {}
// SAFETY: as for `Send`.
unsafe impl Sync for Primitive {}

impl Library {
    fn open() -> Option<Self> {
        // SAFETY: loading oneDNN has no preconditions; the signatures match its header.
        let library = LIBRARY_NAMES.iter().find_map(|name| unsafe { libloading::Library::new(name) }.ok())?;
        // SAFETY: the signatures match oneDNN's header.
        let functions = unsafe { Functions::load(&library) }.ok()?;
        let (mut engine, mut stream) = (null_mut(), null_mut());
        // SAFETY: the out-pointers are valid.
        unsafe {
            if (functions.dnnl_engine_create)(&mut engine, ENGINE_CPU, 0) != 0
                || (functions.dnnl_stream_create)(&mut stream, engine, STREAM_IN_ORDER) != 0
            {
                return None;
            }
        }
        Some(Self { functions, engine, stream, primitives: Mutex::default(), _library: library })
    }

    /// Returns `(major, minor, patch)`.
    pub fn version(&self) -> (i32, i32, i32) {
        // SAFETY: the function returns a pointer to a static.
        let version = unsafe { &*(self.functions.dnnl_version)() };
        (version.major, version.minor, version.patch)
    }

    /// Whether the library has kernels for a type on this CPU.
    pub fn supports(&self, data: DataType) -> bool {
        let f = &self.functions;
        let (dims, ones, zeros) = ([1, 16, 4, 4], [1, 1], [0, 0]);
        let activation = self.channels_last(data, &dims);
        let weights = self.any(data, &[16, 16, 1, 1]);
        let bias = self.strided(DataType::F32, &[16], &[1]);
        let mut descriptor = ConvolutionDesc([0; 8192]);
        let mut desc = null_mut();
        // SAFETY: every pointer points to a live value of the type declared in dnnl.h.
        unsafe {
            let made = (f.dnnl_convolution_forward_desc_init)(
                &mut descriptor,
                FORWARD_TRAINING,
                ALGORITHM_DIRECT,
                &activation,
                &weights,
                &bias,
                &activation,
                ones.as_ptr(),
                zeros.as_ptr(),
                zeros.as_ptr(),
            );
            let descriptor = (&raw const descriptor).cast();
            if made != 0 || (f.dnnl_primitive_desc_create)(&mut desc, descriptor, null(), self.engine, null()) != 0 {
                return false;
            }
            (f.dnnl_primitive_desc_destroy)(desc);
        }
        true
    }

    /// Computes `dst = conv(src, weights) + bias`.
    pub fn forward<T: ActivationElement>(
        &self,
        problem: OneDnnConv,
        src: &[T],
        weights: &[f32],
        bias: &[f32],
        dst: &mut [T],
    ) {
        problem.check::<T>(src.len(), weights.len(), dst.len());
        assert_eq!(bias.len(), problem.c_out);
        let pointers = [(ARG_SRC, address(src)), (ARG_BIAS, address(bias)), (ARG_DST, address(dst))];
        self.run(ConvPass::Forward, problem, &pointers, address(weights));
    }

    /// Computes the input gradient `d_src` from `d_dst` and the weights.
    pub fn backward_input<T: ActivationElement>(
        &self,
        problem: OneDnnConv,
        weights: &[f32],
        d_dst: &[T],
        d_src: &mut [T],
    ) {
        problem.check::<T>(d_src.len(), weights.len(), d_dst.len());
        let pointers = [(ARG_DIFF_DST, address(d_dst)), (ARG_DIFF_SRC, address(d_src))];
        self.run(ConvPass::BackwardInput, problem, &pointers, address(weights));
    }

    /// Computes the gradients of weights and bias.
    pub fn backward_weights<T: ActivationElement>(
        &self,
        problem: OneDnnConv,
        src: &[T],
        d_dst: &[T],
        d_weights: &mut [f32],
        d_bias: &mut [f32],
    ) {
        problem.check::<T>(src.len(), d_weights.len(), d_dst.len());
        assert_eq!(d_bias.len(), problem.c_out);
        let pointers = [(ARG_SRC, address(src)), (ARG_DIFF_DST, address(d_dst)), (ARG_DIFF_BIAS, address(d_bias))];
        self.run(ConvPass::BackwardWeights, problem, &pointers, address(d_weights));
    }

    /// Runs a pass on operands whose lengths have been checked.
    fn run(&self, step: ConvPass, problem: OneDnnConv, operands: &[(c_int, *mut c_void)], weights: *mut c_void) {
        let mut primitives = self.primitives.lock().expect("no panic while the lock is held");
        let primitive = primitives.entry((step, problem)).or_insert_with(|| Arc::new(self.compile(step, problem)));
        // SAFETY: the pointers cover the extents of the memory descriptors (checked by the callers), outputs were
        // passed as `&mut`, and the stream is waited for before the borrow ends.
        unsafe {
            let f = &self.functions;
            let mut args = Vec::with_capacity(operands.len() + 1);
            for (&(argument, pointer), &(expected, memory)) in operands.iter().zip(&primitive.operands) {
                debug_assert_eq!(argument, expected);
                check((f.dnnl_memory_set_data_handle)(memory, pointer), "dnnl_memory_set_data_handle");
                args.push(ExecArg { arg: argument, memory });
            }
            let packed = &primitive.weights;
            check((f.dnnl_memory_set_data_handle)(packed.plain, weights), "dnnl_memory_set_data_handle");
            args.push(ExecArg { arg: packed.argument, memory: packed.packed });
            if step == ConvPass::BackwardWeights {
                in_library(|| self.execute(primitive.handle, &args));
                self.reorder(packed, packed.packed, packed.plain);
            } else {
                self.reorder(packed, packed.plain, packed.packed);
                in_library(|| self.execute(primitive.handle, &args));
            }
            check((f.dnnl_stream_wait)(self.stream), "dnnl_stream_wait");
        }
    }

    unsafe fn reorder(&self, weights: &WeightsMemory, from: Handle, to: Handle) {
        let args = [ExecArg { arg: ARG_SRC, memory: from }, ExecArg { arg: ARG_DST, memory: to }];
        // SAFETY: as in `run`.
        unsafe { self.execute(weights.reorder, &args) };
    }

    unsafe fn execute(&self, primitive: Handle, args: &[ExecArg]) {
        // SAFETY: as in `run`.
        let status = unsafe {
            (self.functions.dnnl_primitive_execute)(primitive, self.stream, args.len() as c_int, args.as_ptr())
        };
        check(status, "dnnl_primitive_execute");
    }

    /// Compiles a pass: activations stay channels-last, weights use the layout that oneDNN prefers.
    fn compile(&self, step: ConvPass, problem: OneDnnConv) -> Primitive {
        let f = &self.functions;
        let rank = problem.spatial_rank();
        let skip = 3 - rank;
        let dims = |n: usize, c: usize, extent: [usize; 3]| -> Vec<i64> {
            [n, c].into_iter().chain(extent.into_iter().skip(skip)).map(|extent| extent as i64).collect()
        };
        let src = self.channels_last(problem.data, &dims(problem.n, problem.c_in, problem.input));
        let dst = self.channels_last(problem.data, &dims(problem.n, problem.c_out, problem.output));
        let bias = self.strided(DataType::F32, &[problem.c_out as i64], &[1]);
        let weight_dims = dims(problem.c_out, problem.c_in, problem.kernel);
        let weights_plain = self.strided(DataType::F32, &weight_dims, &c_order(&weight_dims));
        let weights_any = self.any(problem.data, &weight_dims);
        let weight_gradients_any = self.any(DataType::F32, &weight_dims);
        let axes = |values: [usize; 3]| -> Vec<i64> { values[skip..].iter().map(|&value| value as i64).collect() };
        let (stride, padding) = (axes(problem.stride), axes(problem.padding));
        let padding_after: Vec<i64> = (skip..3).map(|axis| problem.padding_after(axis)).collect();
        let (stride, left, right) = (stride.as_ptr(), padding.as_ptr(), padding_after.as_ptr());

        let mut descriptor = ConvolutionDesc([0; 8192]);
        // SAFETY: every pointer points to a live value of the type declared in dnnl.h.
        let forward_hint = unsafe {
            let status = (f.dnnl_convolution_forward_desc_init)(
                &mut descriptor,
                FORWARD_TRAINING,
                ALGORITHM_DIRECT,
                &src,
                &weights_any,
                &bias,
                &dst,
                stride,
                left,
                right,
            );
            check(status, "dnnl_convolution_forward_desc_init");
            self.primitive_desc(&descriptor, null())
        };
        // SAFETY: as above.
        let (desc, operands, weights_query, weights_argument) = unsafe {
            match step {
                ConvPass::Forward => {
                    let operands = vec![(ARG_SRC, &src), (ARG_BIAS, &bias), (ARG_DST, &dst)];
                    (forward_hint, operands, QUERY_WEIGHTS, ARG_WEIGHTS)
                }
                ConvPass::BackwardInput => {
                    let status = (f.dnnl_convolution_backward_data_desc_init)(
                        &mut descriptor,
                        ALGORITHM_DIRECT,
                        &src,
                        &weights_any,
                        &dst,
                        stride,
                        left,
                        right,
                    );
                    check(status, "dnnl_convolution_backward_data_desc_init");
                    let desc = self.primitive_desc(&descriptor, forward_hint);
                    (desc, vec![(ARG_DIFF_DST, &dst), (ARG_DIFF_SRC, &src)], QUERY_WEIGHTS, ARG_WEIGHTS)
                }
                ConvPass::BackwardWeights => {
                    let status = (f.dnnl_convolution_backward_weights_desc_init)(
                        &mut descriptor,
                        ALGORITHM_DIRECT,
                        &src,
                        &weight_gradients_any,
                        &bias,
                        &dst,
                        stride,
                        left,
                        right,
                    );
                    check(status, "dnnl_convolution_backward_weights_desc_init");
                    let desc = self.primitive_desc(&descriptor, forward_hint);
                    let operands = vec![(ARG_SRC, &src), (ARG_DIFF_DST, &dst), (ARG_DIFF_BIAS, &bias)];
                    (desc, operands, QUERY_DIFF_WEIGHTS, ARG_DIFF_WEIGHTS)
                }
            }
        };
        // SAFETY: as above; the descriptor returned by the query lives as long as `desc`.
        unsafe {
            let packed: Md = (f.dnnl_primitive_desc_query_md)(desc, weights_query, 0);
            let plain: Md = &weights_plain;
            let (from, to) = if step == ConvPass::BackwardWeights { (packed, plain) } else { (plain, packed) };
            let mut reorder_desc = null_mut();
            let status =
                (f.dnnl_reorder_primitive_desc_create)(&mut reorder_desc, from, self.engine, to, self.engine, null());
            check(status, "dnnl_reorder_primitive_desc_create");
            let weights = WeightsMemory {
                argument: weights_argument,
                plain: self.memory(plain, 0),
                packed: self.memory(packed, MEMORY_ALLOCATE),
                reorder: self.primitive(reorder_desc),
            };
            let operands = operands.into_iter().map(|(argument, md)| (argument, self.memory(md, 0))).collect();
            let handle = self.primitive(desc);
            (f.dnnl_primitive_desc_destroy)(reorder_desc);
            (f.dnnl_primitive_desc_destroy)(desc);
            if desc != forward_hint {
                (f.dnnl_primitive_desc_destroy)(forward_hint);
            }
            Primitive { handle, operands, weights }
        }
    }

    unsafe fn primitive_desc(&self, descriptor: &ConvolutionDesc, hint: *const c_void) -> Handle {
        let mut desc = null_mut();
        // SAFETY: the caller has initialized the descriptor.
        let status = unsafe {
            let descriptor = (&raw const *descriptor).cast();
            (self.functions.dnnl_primitive_desc_create)(&mut desc, descriptor, null(), self.engine, hint)
        };
        check(status, "dnnl_primitive_desc_create");
        desc
    }

    unsafe fn primitive(&self, desc: Handle) -> Handle {
        let mut handle = null_mut();
        // SAFETY: `desc` is a live primitive descriptor.
        check(unsafe { (self.functions.dnnl_primitive_create)(&mut handle, desc) }, "dnnl_primitive_create");
        handle
    }

    /// Creates a memory object; `data` is 0 (set later) or [`MEMORY_ALLOCATE`].
    unsafe fn memory(&self, md: Md, data: usize) -> Handle {
        let mut memory = null_mut();
        // SAFETY: the caller passes an initialized descriptor.
        let status = unsafe { (self.functions.dnnl_memory_create)(&mut memory, md, self.engine, data) };
        check(status, "dnnl_memory_create");
        memory
    }

    fn strided(&self, data: DataType, dims: &[i64], strides: &[i64]) -> MemoryDesc {
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
    fn channels_last(&self, data: DataType, dims: &[i64]) -> MemoryDesc {
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

    fn any(&self, data: DataType, dims: &[i64]) -> MemoryDesc {
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

impl OneDnnConv {
    /// Number of spatial axes. If the z axis is trivial, the problem is 2D, for which oneDNN has faster kernels.
    fn spatial_rank(&self) -> usize {
        if self.input[0] == 1 && self.output[0] == 1 && self.kernel[0] == 1 && self.padding[0] == 0 { 2 } else { 3 }
    }

    /// Zero padding after the input; negative if the last window ends before the end of the input.
    fn padding_after(&self, axis: usize) -> i64 {
        let reach = (self.output[axis] - 1) * self.stride[axis] + self.kernel[axis];
        reach as i64 - self.input[axis] as i64 - self.padding[axis] as i64
    }

    fn check<T: ActivationElement>(&self, src: usize, weights: usize, dst: usize) {
        let volume = |extent: [usize; 3]| extent.iter().product::<usize>();
        assert_eq!(self.data, T::ONEDNN);
        assert_eq!(src, self.n * self.c_in * volume(self.input), "input of {self:?}");
        assert_eq!(weights, self.c_out * self.c_in * volume(self.kernel), "weights of {self:?}");
        assert_eq!(dst, self.n * self.c_out * volume(self.output), "output of {self:?}");
    }
}

/// Returns the address of a slice for C. Callers must have borrowed outputs mutably.
fn address<T>(values: &[T]) -> *mut c_void {
    values.as_ptr().cast_mut().cast()
}

fn c_order(dims: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; dims.len()];
    for axis in (0..dims.len() - 1).rev() {
        strides[axis] = strides[axis + 1] * dims[axis + 1];
    }
    strides
}

/// Panics if a call failed. oneDNN fails only on invalid descriptors or exhausted memory, neither of which is
/// recoverable.
#[track_caller]
fn check(status: c_int, call: &str) {
    assert_eq!(status, 0, "oneDNN: {call} failed with status {status} (1 = out of memory)");
}
