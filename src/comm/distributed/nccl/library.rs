//! NCCL, loaded at run time. This is the only file that knows its C interface.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::Library;

use crate::cuda::open_first;

/// Library names passed to the loader: the name in PyPI wheels and in the packages of NVIDIA and the distributions, and
/// the name in their development packages.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Environment variable with the path of the library file, or of a folder that contains it.
const VARIABLE: &str = "NNUNET_DIST_NCCL";

/// Installation instructions for error messages.
pub(super) const INSTALL: &str = "install it with `apt-get install libnccl2` or `pip install nvidia-nccl-cu12`, or name \
                                  the file in NNUNET_DIST_NCCL";

/// `NCCL_CONFIG_INITIALIZER` of nccl.h.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;
/// NCCL version whose layout cudarc's `ncclConfig_t` has: 2.30. Older versions read only the fields that they know.
const CONFIG_VERSION: u32 = 23_000;

/// Declares the C functions in use as a struct of pointers, loaded from the library by name.
///
/// Results are integers, not cudarc's enum: a newer library may return values that the enum lacks.
macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Functions {
            /// Returns the name of the first missing function as the error.
            ///
            /// # Safety
            /// The library must be NCCL 2.
            unsafe fn load(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the signatures below are those of nccl.h.
                unsafe { Ok(Self { $($name: *library.get(stringify!($name).as_bytes())
                    .map_err(|_| stringify!($name))?,)* }) }
            }
        }
    };
}

functions! {
    ncclGetVersion(*mut c_int) -> c_int;
    ncclGetUniqueId(*mut ncclUniqueId) -> c_int;
    ncclCommInitRankConfig(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> c_int;
    ncclCommGetAsyncError(ncclComm_t, *mut c_int) -> c_int;
    ncclAllReduce(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> c_int;
    ncclCommFinalize(ncclComm_t) -> c_int;
    ncclCommDestroy(ncclComm_t) -> c_int;
    ncclCommAbort(ncclComm_t) -> c_int;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetLastError(ncclComm_t) -> *const c_char;
}

/// The loaded library. It is never unloaded, since NCCL's threads may outlive its communicators.
pub(super) struct Nccl {
    functions: Functions,
    /// Path from which it was loaded.
    pub(super) path: PathBuf,
    version: usize,
}

/// A failed NCCL call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {message}")]
pub(super) struct NcclError {
    call: &'static str,
    pub(super) code: c_int,
    message: String,
}

impl NcclError {
    /// Returns whether the installation or its use is at fault, so that a retry would fail the same way: `ncclResult_t`
    /// unhandled CUDA error, internal error, invalid argument or invalid usage.
    pub(super) fn is_permanent(&self) -> bool {
        matches!(self.code, 1 | 3 | 4 | 5)
    }
}

/// Status of a call on a non-blocking communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    /// `ncclInProgress`: no other call is allowed on the communicator until [`Nccl::progress`] returns `Done`.
    Going,
}

impl Nccl {
    /// Loads the library on the first call; later calls return the same instance.
    ///
    /// # Errors
    /// Returns an error if the library cannot be loaded; [`INSTALL`] says how to install it.
    pub(super) fn open() -> Result<&'static Self, String> {
        static LIBRARY: OnceLock<Result<Nccl, String>> = OnceLock::new();
        let find = || open_first(VARIABLE, &NAMES, "nccl").and_then(|(library, path)| load(library, path));
        LIBRARY.get_or_init(find).as_ref().map_err(Clone::clone)
    }

    /// Returns the version, such as `2.30.7`.
    pub(super) fn version(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    /// Creates the unique ID of a new communicator. The creating process must live until all ranks have joined.
    pub(super) fn unique_id(&self) -> Result<ncclUniqueId, NcclError> {
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: the out-pointer is valid.
        self.check("ncclGetUniqueId", unsafe { (self.functions.ncclGetUniqueId)(&mut id) })?;
        Ok(id)
    }

    /// Starts joining a communicator without blocking; [`Nccl::progress`] reports when it is done. A communicator may
    /// be returned even on failure and must be aborted then.
    pub(super) fn begin_join(
        &self,
        rank: usize,
        world_size: usize,
        id: ncclUniqueId,
    ) -> (ncclComm_t, Result<Progress, NcclError>) {
        let mut comm = ptr::null_mut();
        let mut config = non_blocking();
        let (ranks, rank) = (world_size as c_int, rank as c_int);
        // SAFETY: the pointers are to live variables; NCCL copies the configuration.
        let code = unsafe { (self.functions.ncclCommInitRankConfig)(&mut comm, ranks, id, rank, &mut config) };
        (comm, self.step("ncclCommInitRankConfig", code))
    }

    /// Returns the status of the communicator.
    ///
    /// # Safety
    /// The communicator must not have been aborted or destroyed. The same holds for all functions below.
    pub(super) unsafe fn progress(&self, comm: ncclComm_t) -> Result<Progress, NcclError> {
        let mut state = 0;
        // SAFETY: promised by the caller; the out-pointer is valid.
        let code = unsafe { (self.functions.ncclCommGetAsyncError)(comm, &mut state) };
        self.check("ncclCommGetAsyncError", code)?;
        self.step("NCCL", state).map_err(|error| NcclError { message: self.explain(comm, error.code), ..error })
    }

    /// Queues an in-place all-reduce.
    ///
    /// # Safety
    /// `pointer` must point to `len` elements in the memory of the communicator's device.
    pub(super) unsafe fn all_reduce(
        &self,
        pointer: u64,
        len: usize,
        element: ncclDataType_t,
        op: ncclRedOp_t,
        comm: ncclComm_t,
        stream: cudaStream_t,
    ) -> Result<Progress, NcclError> {
        let buffer = ptr::with_exposed_provenance_mut(pointer as usize);
        // SAFETY: promised by the caller.
        let code = unsafe { (self.functions.ncclAllReduce)(buffer, buffer, len, element, op, comm, stream) };
        self.step("ncclAllReduce", code).map_err(|error| NcclError { message: self.explain(comm, error.code), ..error })
    }

    /// Starts to finalize the communicator; all ranks must call this.
    ///
    /// # Safety
    /// See [`Nccl::progress`].
    pub(super) unsafe fn finalize(&self, comm: ncclComm_t) -> Result<Progress, NcclError> {
        // SAFETY: promised by the caller.
        self.step("ncclCommFinalize", unsafe { (self.functions.ncclCommFinalize)(comm) })
    }

    /// Destroys a finalized communicator.
    ///
    /// # Safety
    /// See [`Nccl::progress`]; the communicator must not be used afterwards.
    pub(super) unsafe fn destroy(&self, comm: ncclComm_t) -> Result<Progress, NcclError> {
        // SAFETY: promised by the caller.
        self.step("ncclCommDestroy", unsafe { (self.functions.ncclCommDestroy)(comm) })
    }

    /// Aborts the operations in flight on this rank, and frees the communicator.
    ///
    /// # Safety
    /// See [`Nccl::progress`]. No other thread may be inside NCCL, and the communicator must not be used afterwards.
    pub(super) unsafe fn abort(&self, comm: ncclComm_t) -> Result<Progress, NcclError> {
        // SAFETY: promised by the caller.
        self.step("ncclCommAbort", unsafe { (self.functions.ncclCommAbort)(comm) })
    }

    /// Returns NCCL's description of a result code, with the details of the last error if available.
    fn explain(&self, comm: ncclComm_t, code: c_int) -> String {
        // SAFETY: both return null or a string that lives as long as the library or until the next error.
        let (kind, detail) =
            unsafe { (text((self.functions.ncclGetErrorString)(code)), text((self.functions.ncclGetLastError)(comm))) };
        match detail.trim() {
            "" => kind,
            detail => format!("{kind} ({})", detail.replace('\n', "; ")),
        }
    }

    fn step(&self, call: &'static str, code: c_int) -> Result<Progress, NcclError> {
        match code {
            0 => Ok(Progress::Done),
            7 => Ok(Progress::Going),
            code => Err(NcclError { call, code, message: self.explain(ptr::null_mut(), code) }),
        }
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), NcclError> {
        self.step(call, code).map(|_| ())
    }
}

fn load(library: Library, path: PathBuf) -> Result<Nccl, String> {
    let old = |what: &str| format!("{}: NCCL 2.14 or newer is needed ({what})", path.display());
    // SAFETY: the library has the name of NCCL 2.
    let functions = unsafe { Functions::load(&library) }.map_err(|name| old(&format!("{name} is missing")))?;
    // NCCL's threads may outlive its communicators.
    std::mem::forget(library);
    let mut version = 0;
    // SAFETY: the out-pointer is valid.
    let code = unsafe { (functions.ncclGetVersion)(&mut version) };
    let version = usize::try_from(version).ok().filter(|_| code == 0).ok_or_else(|| old("its version is unknown"))?;
    Ok(Nccl { functions, path, version })
}

/// `NCCL_CONFIG_INITIALIZER`, with `blocking = 0`.
fn non_blocking() -> ncclConfig_t {
    // SAFETY: the fields are integers and pointers, for which zero is valid.
    let zero: ncclConfig_t = unsafe { MaybeUninit::zeroed().assume_init() };
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
        ..zero
    }
}

fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's strings end in a zero.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_equals_nccls_initializer() {
        let config = non_blocking();
        assert_eq!((config.size, config.magic, config.blocking), (size_of::<ncclConfig_t>(), 0xcafe_beef, 0));
        assert!(config.netName.is_null() && config.commName.is_null());
        assert_eq!((config.splitShare, config.maxP2pPeers), (i32::MIN, i32::MIN));
    }
}
