//! C API of oneDNN. This is the only file that declares its functions.
//!
//! The API of version 2 (`libdnnl.so.2`; Debian 12 has 2.6) passes descriptors by pointer, so they are stored here as
//! opaque blocks of at least their size. Names and constants are from oneDNN 2.6, `dnnl.h` and `dnnl_types.h`.

use std::ffi::{c_int, c_void};

pub(super) const ENGINE_CPU: c_int = 1;
pub(super) const STREAM_IN_ORDER: u32 = 1;
pub(super) const FORWARD_TRAINING: c_int = 64;
pub(super) const TAG_ANY: c_int = 1;
pub(super) const ALGORITHM_DIRECT: c_int = 1;
pub(super) const MEMORY_ALLOCATE: usize = usize::MAX;

pub(super) const ARG_SRC: c_int = 1;
pub(super) const ARG_DST: c_int = 17;
pub(super) const ARG_WEIGHTS: c_int = 33;
pub(super) const ARG_BIAS: c_int = 41;
pub(super) const ARG_DIFF_SRC: c_int = 129;
pub(super) const ARG_DIFF_DST: c_int = 145;
pub(super) const ARG_DIFF_WEIGHTS: c_int = 161;
pub(super) const ARG_DIFF_BIAS: c_int = 169;

pub(super) const QUERY_WEIGHTS: c_int = 131;
pub(super) const QUERY_DIFF_WEIGHTS: c_int = 132;

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
pub(super) struct MemoryDesc(pub(super) [u8; 1024]);

/// `dnnl_convolution_desc_t` (5976 bytes in 2.6).
#[repr(C, align(8))]
pub(super) struct ConvolutionDesc(pub(super) [u8; 8192]);

/// `dnnl_exec_arg_t`.
#[repr(C)]
pub(super) struct ExecArg {
    pub(super) arg: c_int,
    pub(super) memory: *mut c_void,
}

/// `dnnl_version_t`, only the fields in use.
#[repr(C)]
pub(super) struct Version {
    pub(super) major: c_int,
    pub(super) minor: c_int,
    pub(super) patch: c_int,
}

pub(super) type Handle = *mut c_void;
pub(super) type Md = *const MemoryDesc;
pub(super) type Dims = *const i64;

/// Declares the C functions in use as a struct of function pointers, loaded by name.
macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        pub(super) struct Functions { $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Functions {
            /// # Safety
            /// The library must be oneDNN 2.
            pub(super) unsafe fn load(library: &libloading::Library) -> Result<Self, libloading::Error> {
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
