//! Bindings to cuDNN, loaded at run time. This is the only file that declares its C functions.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;
use libloading::Library;

use nnunet_comm::cuda::open_first;

/// Library names to try: those of PyPI wheels and of NVIDIA's packages.
const NAMES: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];
/// Environment variable with the library file, or a folder to search.
const VARIABLE: &str = "NNUNET_DIST_CUDNN";
/// Oldest supported version, 9.0: the graph API is complete and status codes are as used below.
const OLDEST: usize = 90_000;

/// Handle or descriptor of cuDNN.
pub(super) type Pointer = *mut c_void;

/// Declares the C functions in use as a struct of function pointers, loaded by name.
macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        #[allow(non_snake_case)]
        pub(super) struct Functions { $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Functions {
            /// Returns the name of the first missing function as the error.
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

/// The loaded library. It is never unloaded.
pub struct Cudnn {
    pub(super) functions: Functions,
    path: PathBuf,
    version: usize,
}

/// A cuDNN call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {message}")]
pub struct CallError {
    call: &'static str,
    code: c_int,
    message: String,
}

impl CallError {
    /// Whether the status is "not supported" rather than a failure.
    pub(super) fn is_unsupported(&self) -> bool {
        (3000..4000).contains(&self.code)
    }

    /// Whether the status is "bad parameter".
    pub(super) fn is_bad_parameter(&self) -> bool {
        (2000..3000).contains(&self.code)
    }

    /// Whether the device or the host is out of memory.
    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self.code, 4003 | 4004)
    }
}

impl Cudnn {
    /// Loads the library on the first call.
    ///
    /// # Errors
    /// Returns a one-line error if the library cannot be loaded.
    pub fn open() -> Result<&'static Self, String> {
        static LIBRARY: OnceLock<Result<Cudnn, String>> = OnceLock::new();
        let find = || open_first(VARIABLE, &NAMES, "cudnn").and_then(|(library, path)| Self::load(library, path));
        LIBRARY.get_or_init(find).as_ref().map_err(Clone::clone)
    }

    fn load(library: Library, path: PathBuf) -> Result<Self, String> {
        let old = |what: String| format!("{}: cuDNN 9 or newer is needed ({what})", path.display());
        // SAFETY: the library has the name of cuDNN.
        let functions = unsafe { Functions::load(&library) }.map_err(|name| old(format!("{name} is missing")))?;
        std::mem::forget(library);
        // SAFETY: no preconditions.
        let version = unsafe { (functions.cudnnGetVersion)() };
        if version < OLDEST {
            return Err(old(format!("this is version {version}")));
        }
        Ok(Self { functions, path, version })
    }

    /// Returns the version, e.g. `9.10.2`.
    pub fn version(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    /// Returns the path of the library.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), CallError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: returns a constant string for every code.
        let text = unsafe { (self.functions.cudnnGetErrorString)(code) };
        let message = match text.is_null() {
            true => format!("error {code}"),
            // SAFETY: as above.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        Err(CallError { call, code, message })
    }
}
