//! The CUDA driver. This is the only file that knows its C interface.

use std::env;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUevent, CUstream, CUuuid};
use libloading::Library;

/// Library name that every driver installs.
const NAME: &str = "libcuda.so.1";

/// `CU_STREAM_NON_BLOCKING`: not ordered against the legacy default stream.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const NO_TIMING: c_uint = 2;
/// `CU_EVENT_DEFAULT`.
const WITH_TIMING: c_uint = 0;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: c_int = 2;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
const MAJOR: c_int = 75;
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: c_int = 600;

/// Declares the C functions in use as a struct of pointers, loaded from the library by name.
///
/// Results are integers, not cudarc's enum: a newer driver may return values that the enum lacks.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl Functions {
            /// Returns the name of the first missing function as the error.
            ///
            /// # Safety
            /// The library must be the CUDA driver.
            unsafe fn load(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the signatures below are those of cuda.h.
                unsafe { Ok(Self { $($name: *library.get(stringify!($name).as_bytes())
                    .map_err(|_| stringify!($name))?,)* }) }
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuGetErrorName(c_int, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetUuid_v2(*mut CUuuid, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxSetCurrent(CUcontext);
    cuCtxSynchronize();
    cuDeviceGetAttribute(*mut c_int, c_int, CUdevice);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuStreamSynchronize(CUstream);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventRecord(CUevent, CUstream);
    cuEventQuery(CUevent);
    cuEventSynchronize(CUevent);
    cuEventElapsedTime(*mut f32, CUevent, CUevent);
    cuEventDestroy_v2(CUevent);
}

/// `cuCtxRecordEvent` and `cuCtxWaitEvent`, available since CUDA 12.5: events over all streams of a context.
///
/// They order our stream against CubeCL's streams, which CubeCL does not expose.
#[derive(Clone, Copy)]
struct ContextEvents {
    record: unsafe extern "C" fn(CUcontext, CUevent) -> c_int,
    wait: unsafe extern "C" fn(CUcontext, CUevent) -> c_int,
}

/// The loaded driver library. It is never unloaded.
pub struct Driver {
    functions: Functions,
    context_events: Option<ContextEvents>,
}

/// A failed driver call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {name}")]
pub struct DriverError {
    call: &'static str,
    code: c_int,
    name: String,
}

impl DriverError {
    /// Returns whether the device is out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == OUT_OF_MEMORY
    }
}

type Result<T, E = DriverError> = std::result::Result<T, E>;

impl Driver {
    /// Loads the driver on the first call; later calls return the same instance.
    ///
    /// # Errors
    /// Returns an error in one line that says what is missing and how to install it.
    pub fn open() -> Result<&'static Self, String> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        DRIVER.get_or_init(Self::find).as_ref().map_err(Clone::clone)
    }

    fn find() -> Result<Self, String> {
        // SAFETY: any process may run the driver's initializers.
        let library = unsafe { Library::new(NAME) }.map_err(|_| {
            format!(
                "there is no CUDA driver: {NAME} is not found (install NVIDIA's driver; in a container: --gpus all)"
            )
        })?;
        // SAFETY: the library has the name of the driver; the signatures are those of cuda.h.
        let (functions, record, wait) = unsafe {
            let functions = Functions::load(&library);
            (functions, library.get(b"cuCtxRecordEvent"), library.get(b"cuCtxWaitEvent"))
        };
        let functions = functions.map_err(|name| format!("{NAME} is too old: {name} is missing"))?;
        let context_events = match (record, wait) {
            (Ok(record), Ok(wait)) => Some(ContextEvents { record: *record, wait: *wait }),
            _ => None,
        };
        std::mem::forget(library);
        let driver = Self { functions, context_events };
        // SAFETY: no preconditions.
        driver.check("cuInit", unsafe { (driver.functions.cuInit)(0) }).map_err(|error| {
            let visible = env::var("CUDA_VISIBLE_DEVICES").map(|list| format!("; CUDA_VISIBLE_DEVICES={list}"));
            format!("the CUDA driver finds no GPU ({error}{})", visible.unwrap_or_default())
        })?;
        Ok(driver)
    }

    /// Returns the number of GPUs visible to this process.
    pub fn devices(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the out-pointer is valid.
        self.check("cuDeviceGetCount", unsafe { (self.functions.cuDeviceGetCount)(&mut count) })?;
        Ok(count.max(0) as usize)
    }

    /// Returns the UUID of a GPU, in the format of `nvidia-smi -L`.
    pub fn uuid(&self, ordinal: usize) -> Result<String> {
        let device = self.device(ordinal)?;
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: the out-pointer is valid.
        self.check("cuDeviceGetUuid", unsafe { (self.functions.cuDeviceGetUuid_v2)(&mut uuid, device) })?;
        Ok(uuid_text(uuid.bytes.map(|byte| byte as u8)))
    }

    /// Returns the model name of a GPU, such as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self, ordinal: usize) -> Result<String> {
        let device = self.device(ordinal)?;
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: the buffer has the stated length and is zero-terminated.
        let code = unsafe { (self.functions.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int - 1, device) };
        self.check("cuDeviceGetName", code)?;
        // SAFETY: as above.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// Returns the major compute capability of a GPU, such as 9 for Hopper.
    pub fn compute_capability(&self, ordinal: usize) -> Result<c_int> {
        let device = self.device(ordinal)?;
        let mut major = 0;
        // SAFETY: the out-pointer is valid.
        let code = unsafe { (self.functions.cuDeviceGetAttribute)(&mut major, MAJOR, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(major)
    }

    fn device(&self, ordinal: usize) -> Result<CUdevice> {
        let mut device = 0;
        // SAFETY: the out-pointer is valid.
        self.check("cuDeviceGet", unsafe { (self.functions.cuDeviceGet)(&mut device, ordinal as c_int) })?;
        Ok(device)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(DriverError { call, code, name: self.name_of(code) }) }
    }

    fn name_of(&self, code: c_int) -> String {
        let mut name = ptr::null();
        // SAFETY: the out-pointer is valid; it becomes null or a constant string.
        unsafe {
            (self.functions.cuGetErrorName)(code, &mut name);
            if name.is_null() {
                return format!("error {code}");
            }
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

/// The primary context of a device, which CubeCL and NCCL use, too.
pub struct Context {
    driver: &'static Driver,
    device: CUdevice,
    handle: CUcontext,
    events: Option<ContextEvents>,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

impl Context {
    pub fn primary(driver: &'static Driver, ordinal: usize) -> Result<Self> {
        let device = driver.device(ordinal)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        let code = unsafe { (driver.functions.cuDevicePrimaryCtxRetain)(&mut handle, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        let mut context = Self { driver, device, handle, events: driver.context_events };
        context.make_current()?;
        context.disable_failing_context_events()?;
        Ok(context)
    }

    /// Disables context events if they fail: the driver may have the functions but not support them for this context.
    fn disable_failing_context_events(&mut self) -> Result<()> {
        let attempt = self.event().and_then(|event| self.record(&event));
        if self.events.is_none() || attempt.is_err() {
            let reason = attempt.err().map_or("the driver is older than CUDA 12.5".into(), |error| error.to_string());
            tracing::warn!("GPU communication blocks the host, which is slower: {reason}");
            self.events = None;
        }
        Ok(())
    }

    /// Binds the calling thread to the context, which NCCL and some driver calls require.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the handle is retained.
        self.driver.check("cuCtxSetCurrent", unsafe { (self.driver.functions.cuCtxSetCurrent)(self.handle) })
    }

    /// Returns whether [`Context::record`] and [`Context::wait_for`] work without blocking the host.
    pub fn has_events(&self) -> bool {
        self.events.is_some()
    }

    /// Records `event` after all work submitted so far to any stream of the context. Without context events, blocks
    /// until that work is complete.
    pub fn record(&self, event: &Event) -> Result<()> {
        match self.events {
            Some(events) => {
                // SAFETY: both handles are alive.
                self.driver.check("cuCtxRecordEvent", unsafe { (events.record)(self.handle, event.handle) })
            }
            // SAFETY: no preconditions.
            None => self.driver.check("cuCtxSynchronize", unsafe { (self.driver.functions.cuCtxSynchronize)() }),
        }
    }

    /// Makes all later work on any stream of the context wait for `event`. Does nothing without context events.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        let Some(events) = self.events else { return Ok(()) };
        // SAFETY: both handles are alive.
        self.driver.check("cuCtxWaitEvent", unsafe { (events.wait)(self.handle, event.handle) })
    }

    /// Returns the used memory of the GPU in bytes, over all processes.
    pub fn memory_in_use(&self) -> Result<usize> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the out-pointers are valid.
        let code = unsafe { (self.driver.functions.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", code)?;
        Ok(total.saturating_sub(free))
    }

    pub fn stream(&self) -> Result<Stream> {
        let mut handle = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        let code = unsafe { (self.driver.functions.cuStreamCreate)(&mut handle, NON_BLOCKING) };
        self.driver.check("cuStreamCreate", code)?;
        Ok(Stream { driver: self.driver, handle })
    }

    /// Creates an event without timing.
    pub fn event(&self) -> Result<Event> {
        self.event_with(NO_TIMING)
    }

    /// Creates an event that records its time.
    pub fn timed_event(&self) -> Result<Event> {
        self.event_with(WITH_TIMING)
    }

    /// Allocates device memory.
    pub fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.make_current()?;
        let mut pointer = 0;
        // SAFETY: the out-pointer is valid.
        self.driver.check("cuMemAlloc", unsafe { (self.driver.functions.cuMemAlloc_v2)(&mut pointer, bytes) })?;
        Ok(Memory { driver: self.driver, pointer, bytes })
    }

    fn event_with(&self, flags: c_uint) -> Result<Event> {
        let mut handle = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        let code = unsafe { (self.driver.functions.cuEventCreate)(&mut handle, flags) };
        self.driver.check("cuEventCreate", code)?;
        Ok(Event { driver: self.driver, handle })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once. A failure has no consequence that can be handled.
        unsafe { (self.driver.functions.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// A non-blocking stream.
pub struct Stream {
    driver: &'static Driver,
    pub handle: CUstream,
}

// SAFETY: as for `Context`.
unsafe impl Send for Stream {}
// SAFETY: as for `Send`.
unsafe impl Sync for Stream {}

impl Stream {
    /// Makes all later work on the stream wait for `event`.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        let code = unsafe { (self.driver.functions.cuStreamWaitEvent)(self.handle, event.handle, 0) };
        self.driver.check("cuStreamWaitEvent", code)
    }

    /// Records `event` after all work submitted to the stream so far.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        let code = unsafe { (self.driver.functions.cuEventRecord)(event.handle, self.handle) };
        self.driver.check("cuEventRecord", code)
    }
}

impl Stream {
    /// Blocks until all work submitted to the stream is complete.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        self.driver.check("cuStreamSynchronize", unsafe { (self.driver.functions.cuStreamSynchronize)(self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; the driver completes pending work.
        unsafe { (self.driver.functions.cuStreamDestroy_v2)(self.handle) };
    }
}

/// A CUDA event.
pub struct Event {
    driver: &'static Driver,
    handle: CUevent,
}

// SAFETY: as for `Context`.
unsafe impl Send for Event {}
// SAFETY: as for `Send`.
unsafe impl Sync for Event {}

impl Event {
    /// Returns whether the recorded work is complete, without blocking.
    ///
    /// # Errors
    /// Returns an error if work on the device has failed.
    pub fn is_complete(&self) -> Result<bool> {
        // SAFETY: the handle is alive.
        match unsafe { (self.driver.functions.cuEventQuery)(self.handle) } {
            NOT_READY => Ok(false),
            code => self.driver.check("cuEventQuery", code).map(|()| true),
        }
    }
}

impl Event {
    /// Blocks until the event is complete, and returns the seconds since `earlier`. Both must be timed events.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        // SAFETY: the handle is alive.
        let code = unsafe { (self.driver.functions.cuEventSynchronize)(self.handle) };
        self.driver.check("cuEventSynchronize", code)?;
        let mut milliseconds = 0.0f32;
        // SAFETY: both handles are alive, the out-pointer is valid.
        let code =
            unsafe { (self.driver.functions.cuEventElapsedTime)(&mut milliseconds, earlier.handle, self.handle) };
        self.driver.check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { (self.driver.functions.cuEventDestroy_v2)(self.handle) };
    }
}

/// Device memory. It must not be dropped before the work that uses it is complete.
pub struct Memory {
    driver: &'static Driver,
    pub pointer: CUdeviceptr,
    pub bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        unsafe { (self.driver.functions.cuMemFree_v2)(self.pointer) };
    }
}

/// Returns whether the first GPU supports bfloat16 (compute capability 8.0 and above); `true` if there is no GPU to
/// query.
pub fn has_bf16() -> bool {
    Driver::open().ok().and_then(|driver| driver.compute_capability(0).ok()).is_none_or(|major| major >= 8)
}

/// Returns the used memory of a GPU in bytes, over all processes, or `None` if it cannot be queried.
pub fn memory_in_use(gpu: usize) -> Option<u64> {
    let context = Context::primary(Driver::open().ok()?, gpu).ok()?;
    context.memory_in_use().ok().map(|bytes| bytes as u64)
}

/// Formats a UUID as `GPU-` followed by groups of 4, 2, 2, 2 and 6 bytes in hexadecimal.
fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_uuids_like_nvidia_smi() {
        assert_eq!(uuid_text(std::array::from_fn(|i| i as u8)), "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
