//! oneDNN convolutions: the loaded library, and its compiled primitives by pass and shape.

mod engine;
mod ffi;
mod primitive;

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock};

use burn::tensor::DType;

pub use ffi::DataType;
pub use primitive::OneDnnConv;

use super::element::ActivationElement;
use crate::ops::profile::in_library;
use crate::ops::{ConvPass, Precision};
use engine::{Engine, check};
use ffi::{ARG_BIAS, ARG_DIFF_BIAS, ARG_DIFF_DST, ARG_DIFF_SRC, ARG_DST, ARG_SRC, ExecArg, Functions, Handle};
use primitive::{Primitive, WeightsMemory};

/// Library names to try.
const LIBRARY_NAMES: [&str; 1] = ["libdnnl.so.2"];

/// The loaded library with its engine, stream and compiled primitives.
pub struct Library {
    engine: Engine,
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

/// Command that installs the library.
pub const INSTALL: &str = "sudo apt-get install libdnnl2";

/// Returns the version of the library as text; `None` if it is not used.
pub fn version() -> Option<String> {
    let (major, minor, patch) = library()?.version();
    Some(format!("{major}.{minor}.{patch}"))
}

/// Describes the effect and the remedy if the library is not used; `None` if it is.
pub fn missing() -> Option<String> {
    if library().is_some() {
        return None;
    }
    let (cause, remedy) = match is_disabled() {
        true => ("disabled by NNUNET_DIST_ONEDNN=0", "unset it"),
        false => ("not installed", INSTALL),
    };
    Some(format!("oneDNN is {cause}: convolutions on the CPU take 7 to 10 times as long; {remedy}"))
}

/// Whether the user disabled the library.
pub fn is_disabled() -> bool {
    std::env::var_os("NNUNET_DIST_ONEDNN").is_some_and(|value| value == "0")
}

impl Library {
    fn open() -> Option<Self> {
        // SAFETY: loading oneDNN has no preconditions; the signatures match its header.
        let library = LIBRARY_NAMES.iter().find_map(|name| unsafe { libloading::Library::new(name) }.ok())?;
        // SAFETY: the signatures match oneDNN's header.
        let functions = unsafe { Functions::load(&library) }.ok()?;
        let engine = Engine::new(functions)?;
        let stream = engine.stream()?;
        Some(Self { engine, stream, primitives: Mutex::default(), _library: library })
    }

    /// Returns `(major, minor, patch)`.
    pub fn version(&self) -> (i32, i32, i32) {
        // SAFETY: the function returns a pointer to a static.
        let version = unsafe { &*(self.engine.functions.dnnl_version)() };
        (version.major, version.minor, version.patch)
    }

    /// Whether the library has kernels for a type on this CPU.
    pub fn supports(&self, data: DataType) -> bool {
        let (extent, ones) = ([1, 4, 4], [1; 3]);
        let conv = OneDnnConv {
            data,
            n: 1,
            c_in: 16,
            c_out: 16,
            input: extent,
            output: extent,
            kernel: ones,
            stride: ones,
            padding: [0; 3],
        };
        Primitive::is_supported(&self.engine, &conv)
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
    fn run(&self, pass: ConvPass, problem: OneDnnConv, operands: &[(c_int, *mut c_void)], weights: *mut c_void) {
        let mut primitives = self.primitives.lock().expect("no panic while the lock is held");
        let primitive =
            primitives.entry((pass, problem)).or_insert_with(|| Arc::new(Primitive::new(&self.engine, pass, &problem)));
        // SAFETY: the pointers cover the extents of the memory descriptors (checked by the callers), outputs were
        // passed as `&mut`, and the stream is waited for before the borrow ends.
        unsafe {
            let f = &self.engine.functions;
            let mut args = Vec::with_capacity(operands.len() + 1);
            for (&(argument, pointer), &(expected, memory)) in operands.iter().zip(&primitive.operands) {
                debug_assert_eq!(argument, expected);
                check((f.dnnl_memory_set_data_handle)(memory, pointer), "dnnl_memory_set_data_handle");
                args.push(ExecArg { arg: argument, memory });
            }
            let packed = &primitive.weights;
            check((f.dnnl_memory_set_data_handle)(packed.plain, weights), "dnnl_memory_set_data_handle");
            args.push(ExecArg { arg: packed.argument, memory: packed.packed });
            if pass == ConvPass::BackwardWeights {
                in_library(|| self.execute(primitive.handle, &args));
                self.reorder(packed, packed.packed, packed.plain);
            } else {
                self.reorder(packed, packed.plain, packed.packed);
                in_library(|| self.execute(primitive.handle, &args));
            }
            check((f.dnnl_stream_wait)(self.stream), "dnnl_stream_wait");
        }
    }

    /// Copies weights from one layout to the other.
    ///
    /// # Safety
    /// As for [`Library::execute`].
    unsafe fn reorder(&self, weights: &WeightsMemory, from: Handle, to: Handle) {
        let args = [ExecArg { arg: ARG_SRC, memory: from }, ExecArg { arg: ARG_DST, memory: to }];
        // SAFETY: guaranteed by the caller.
        unsafe { self.execute(weights.reorder, &args) };
    }

    /// Queues a primitive.
    ///
    /// # Safety
    /// The memory objects must have the primitive's extents and valid data pointers until the stream is done.
    unsafe fn execute(&self, primitive: Handle, args: &[ExecArg]) {
        // SAFETY: guaranteed by the caller.
        let status = unsafe {
            (self.engine.functions.dnnl_primitive_execute)(primitive, self.stream, args.len() as c_int, args.as_ptr())
        };
        check(status, "dnnl_primitive_execute");
    }
}

/// Returns the address of a slice for C. Callers must have borrowed outputs mutably.
fn address<T>(values: &[T]) -> *mut c_void {
    values.as_ptr().cast_mut().cast()
}
