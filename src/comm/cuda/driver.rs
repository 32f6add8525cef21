//! The CUDA driver: the one file that knows its C interface.

use std::env;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUevent, CUstream, CUuuid};
use libloading::Library;

/// The name that every driver installs.
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

/// Declares the functions in use as a struct of pointers, filled from the library by name.
///
/// Results are integers, not cudarc's enum: a driver newer than this build may return values that the enum lacks.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl Functions {
            /// The name of the first function that is missing is the error.
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

/// `cuCtxRecordEvent` and `cuCtxWaitEvent`, since CUDA 12.5: events of all streams of a context at once.
///
/// They order our stream against CubeCL's, which it does not give out.
#[derive(Clone, Copy)]
struct ContextEvents {
    record: unsafe extern "C" fn(CUcontext, CUevent) -> c_int,
    wait: unsafe extern "C" fn(CUcontext, CUevent) -> c_int,
}

/// The opened driver. It is never closed.
pub struct Driver {
    functions: Functions,
    context_events: Option<ContextEvents>,
}

/// A call of the driver that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {name}")]
pub struct DriverError {
    call: &'static str,
    code: c_int,
    name: String,
}

impl DriverError {
    /// Whether the device has no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        self.code == OUT_OF_MEMORY
    }
}

type Result<T, E = DriverError> = std::result::Result<T, E>;

impl Driver {
    /// Opens the driver, once.
    ///
    /// # Errors
    /// One line that says what is missing and how to get it.
    pub fn open() -> Result<&'static Self, String> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        DRIVER.get_or_init(Self::find).as_ref().map_err(Clone::clone)
    }

    fn find() -> Result<Self, String> {
        // SAFETY: the driver's initialisers may be run by any process.
        let library = unsafe { Library::new(NAME) }.map_err(|_| {
            format!(
                "there is no CUDA driver: {NAME} is not found (install NVIDIA's driver; in a container: --gpus all)"
            )
        })?;
        // SAFETY: it goes by the name of the driver; the signatures are those of cuda.h.
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

    /// How many GPUs this process sees.
    pub fn devices(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the out-pointer is valid.
        self.check("cuDeviceGetCount", unsafe { (self.functions.cuDeviceGetCount)(&mut count) })?;
        Ok(count.max(0) as usize)
    }

    /// The name of a GPU that no other has, as `nvidia-smi -L` prints it.
    pub fn uuid(&self, ordinal: usize) -> Result<String> {
        let device = self.device(ordinal)?;
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: the out-pointer is valid.
        self.check("cuDeviceGetUuid", unsafe { (self.functions.cuDeviceGetUuid_v2)(&mut uuid, device) })?;
        Ok(uuid_text(uuid.bytes.map(|byte| byte as u8)))
    }

    /// Such as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self, ordinal: usize) -> Result<String> {
        let device = self.device(ordinal)?;
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: the buffer is as long as is said, and ends in a zero.
        let code = unsafe { (self.functions.cuDeviceGetName)(name.as_mut_ptr(), name.len() as c_int - 1, device) };
        self.check("cuDeviceGetName", code)?;
        // SAFETY: as above.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// The major number of a GPU's compute capability, such as 9 for Hopper.
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
    pub fn of_device(driver: &'static Driver, ordinal: usize) -> Result<Self> {
        let device = driver.device(ordinal)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        let code = unsafe { (driver.functions.cuDevicePrimaryCtxRetain)(&mut handle, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        let mut context = Self { driver, device, handle, events: driver.context_events };
        context.make_current()?;
        context.give_up_events_that_fail()?;
        Ok(context)
    }

    /// The driver may have the functions, but not for this context.
    fn give_up_events_that_fail(&mut self) -> Result<()> {
        let attempt = self.event().and_then(|event| self.record(&event));
        if self.events.is_none() || attempt.is_err() {
            let reason = attempt.err().map_or("its driver is older than CUDA 12.5".into(), |error| error.to_string());
            tracing::warn!("the exchange between GPUs stops the host, which costs time: {reason}");
            self.events = None;
        }
        Ok(())
    }

    /// Binds the calling thread to the device: NCCL and some calls of the driver go by it.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the handle is retained.
        self.driver.check("cuCtxSetCurrent", unsafe { (self.driver.functions.cuCtxSetCurrent)(self.handle) })
    }

    /// Whether [`Context::record`] and [`Context::wait_for`] work without stopping the host.
    pub fn has_events(&self) -> bool {
        self.events.is_some()
    }

    /// Lets `event` happen after all work that any stream of the context has been given. Without context events: waits
    /// for it.
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

    /// Lets all work that any stream of the context is given from now on wait for `event`. Only with context events.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        let Some(events) = self.events else { return Ok(()) };
        // SAFETY: both handles are alive.
        self.driver.check("cuCtxWaitEvent", unsafe { (events.wait)(self.handle, event.handle) })
    }

    /// Bytes of the GPU that are in use, by whomever.
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

    /// An event that only orders.
    pub fn event(&self) -> Result<Event> {
        self.event_with(NO_TIMING)
    }

    /// An event that notes the time at which it happens.
    pub fn timed_event(&self) -> Result<Event> {
        self.event_with(WITH_TIMING)
    }

    /// Memory of the device.
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
        // SAFETY: retained once, released once. A failure has no consequence that anybody could do something about.
        unsafe { (self.driver.functions.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// A stream of our own.
pub struct Stream {
    driver: &'static Driver,
    pub handle: CUstream,
}

// SAFETY: as for `Context`.
unsafe impl Send for Stream {}
// SAFETY: as for `Send`.
unsafe impl Sync for Stream {}

impl Stream {
    /// Lets all that the stream is given from now on wait for `event`.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        let code = unsafe { (self.driver.functions.cuStreamWaitEvent)(self.handle, event.handle, 0) };
        self.driver.check("cuStreamWaitEvent", code)
    }

    /// Lets `event` happen after all that the stream has been given.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        let code = unsafe { (self.driver.functions.cuEventRecord)(event.handle, self.handle) };
        self.driver.check("cuEventRecord", code)
    }
}

impl Stream {
    /// Waits for all that the stream has been given.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        self.driver.check("cuStreamSynchronize", unsafe { (self.driver.functions.cuStreamSynchronize)(self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; the driver finishes what it still has to do.
        unsafe { (self.driver.functions.cuStreamDestroy_v2)(self.handle) };
    }
}

/// A point in the work of a stream.
pub struct Event {
    driver: &'static Driver,
    handle: CUevent,
}

// SAFETY: as for `Context`.
unsafe impl Send for Event {}
// SAFETY: as for `Send`.
unsafe impl Sync for Event {}

impl Event {
    /// Whether what it was last recorded after is done, without waiting.
    ///
    /// # Errors
    /// Where the device's work has failed.
    pub fn has_happened(&self) -> Result<bool> {
        // SAFETY: the handle is alive.
        match unsafe { (self.driver.functions.cuEventQuery)(self.handle) } {
            NOT_READY => Ok(false),
            code => self.driver.check("cuEventQuery", code).map(|()| true),
        }
    }
}

impl Event {
    /// Waits for it, and gives the seconds since another; both with times.
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

/// Memory of a device. Whoever drops it has waited for the work on it.
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

/// `GPU-` and the bytes in groups of 4, 2, 2, 2 and 6.
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
    fn uuids_are_written_as_nvidia_smi_does() {
        assert_eq!(uuid_text(std::array::from_fn(|i| i as u8)), "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
