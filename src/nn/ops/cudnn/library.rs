//! cuDNN, opened at run time: the one file that knows its C functions.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;
use libloading::Library;

use nnunet_comm::cuda::open_first;

/// Names under which the loader is asked for the library: of PyPI's wheels and of NVIDIA's packages.
const NAMES: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];
/// Names a file, or a folder to look in.
const VARIABLE: &str = "NNUNET_DIST_CUDNN";
/// The graph API is complete, and status codes are as below, from 9.0 on.
const OLDEST: usize = 90_000;

/// A handle or descriptor of cuDNN.
pub(super) type Pointer = *mut c_void;

/// Declares the functions in use as a struct of pointers, filled from the library by name.
macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        #[allow(non_snake_case)]
        pub(super) struct Functions { $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Functions {
            /// The name of the first function that is missing is the error.
            ///
            /// # Safety
            /// The library must be cuDNN.
            unsafe fn load(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the signatures below are those of cudnn_graph.h.
                unsafe { Ok(Self { $($name: *library.get(stringify!($name).as_bytes())
                    .map_err(|_| stringify!($name))?,)* }) }
            }
        }
    };
}

functions! {
    cudnnGetVersion() -> usize;
    cudnnGetErrorString(c_int) -> *const c_char;
    cudnnCreate(*mut Pointer) -> c_int;
    cudnnDestroy(Pointer) -> c_int;
    cudnnSetStream(Pointer, CUstream) -> c_int;
    cudnnBackendCreateDescriptor(c_int, *mut Pointer) -> c_int;
    cudnnBackendDestroyDescriptor(Pointer) -> c_int;
    cudnnBackendFinalize(Pointer) -> c_int;
    cudnnBackendSetAttribute(Pointer, c_int, c_int, i64, *const c_void) -> c_int;
    cudnnBackendGetAttribute(Pointer, c_int, c_int, i64, *mut i64, *mut c_void) -> c_int;
    cudnnBackendExecute(Pointer, Pointer, Pointer) -> c_int;
}

/// The opened library. It is never closed.
pub struct Cudnn {
    pub(super) functions: Functions,
    path: PathBuf,
    version: usize,
}

/// A call of cuDNN that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {message}")]
pub struct CallError {
    call: &'static str,
    code: c_int,
    message: String,
}

impl CallError {
    /// Whether cuDNN cannot do what it is asked, rather than that something has failed.
    pub(super) fn is_unsupported(&self) -> bool {
        (3000..4000).contains(&self.code)
    }

    /// Whether cuDNN takes what it is asked for nonsense.
    pub(super) fn is_bad_parameter(&self) -> bool {
        (2000..3000).contains(&self.code)
    }

    /// Whether the device, or the host, has no memory left.
    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self.code, 4003 | 4004)
    }
}

impl Cudnn {
    /// Opens the library, once.
    ///
    /// # Errors
    /// Why there is none, in one line.
    pub fn open() -> Result<&'static Self, String> {
        static LIBRARY: OnceLock<Result<Cudnn, String>> = OnceLock::new();
        let find = || open_first(VARIABLE, &NAMES, "cudnn").and_then(|(library, path)| Self::load(library, path));
        LIBRARY.get_or_init(find).as_ref().map_err(Clone::clone)
    }

    fn load(library: Library, path: PathBuf) -> Result<Self, String> {
        let old = |what: String| format!("{}: cuDNN 9 or newer is needed ({what})", path.display());
        // SAFETY: it goes by the name of cuDNN.
        let functions = unsafe { Functions::load(&library) }.map_err(|name| old(format!("{name} is missing")))?;
        std::mem::forget(library);
        // SAFETY: no preconditions.
        let version = unsafe { (functions.cudnnGetVersion)() };
        if version < OLDEST {
            return Err(old(format!("this is version {version}")));
        }
        Ok(Self { functions, path, version })
    }

    /// Such as `9.10.2`.
    pub fn version(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: it gives a constant string for every number.
        let text = unsafe { (self.functions.cudnnGetErrorString)(code) };
        let message = match text.is_null() {
            true => format!("error {code}"),
            // SAFETY: as above.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(CallError { call, code, message })
    }
}
