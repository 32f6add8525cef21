//! Checks of the NVIDIA driver, devices and libraries.

use std::ffi::{CStr, c_char, c_int};

use libloading::{Library, Symbol};

use super::Finding;

/// Whether this build supports training on a GPU and therefore requires these parts.
const CUDA_BUILD: bool = cfg!(feature = "cuda");
const REPOSITORY: &str = "(from https://developer.download.nvidia.com/compute/cuda/repos)";
/// Value of `CUDA_SUCCESS`, `ncclSuccess` and `NVRTC_SUCCESS`.
const SUCCESS: c_int = 0;

pub(super) fn examine() -> [Finding; 4] {
    [driver(), nvrtc(), cudnn(), nccl()]
}

fn driver() -> Finding {
    const PART: &str = "CUDA driver";
    let Some(library) = SharedLibrary::open(&["libcuda.so.1"]) else {
        return missing(
            PART,
            "required by --device cuda",
            "sudo apt-get install nvidia-driver, then reboot".to_owned(),
        );
    };
    let Some(driver) = Driver::load(&library) else {
        return missing(PART, "libcuda.so.1 is not a CUDA driver", "sudo apt-get install nvidia-driver".to_owned());
    };
    match driver.devices() {
        Ok(devices) => Finding::found(PART, format!("CUDA {}; {}", driver.version(), devices.join(", "))),
        Err(reason) => {
            let effect = format!("CUDA {} is installed, but {reason}", driver.version());
            missing(PART, &effect, "nvidia-smi # says why; in a container: run it with --gpus all".to_owned())
        }
    }
}

/// CUDA's run-time compiler, which builds the GPU kernels on first use.
fn nvrtc() -> Finding {
    const PART: &str = "NVRTC";
    let version = SharedLibrary::open(&["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]).and_then(|library| {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is that of nvrtc.h; the out-pointers are valid.
        let status = unsafe {
            library.function::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>("nvrtcVersion")?(
                &mut major, &mut minor,
            )
        };
        (status == SUCCESS).then(|| format!("{major}.{minor} ({})", library.name))
    });
    let fix = || format!("sudo apt-get install cuda-nvrtc-12-8 {REPOSITORY}");
    version.map_or_else(|| missing(PART, "required by --device cuda", fix()), |version| Finding::found(PART, version))
}

fn cudnn() -> Finding {
    const PART: &str = "cuDNN";
    let version = SharedLibrary::open(&["libcudnn.so.9"]).and_then(|library| {
        // SAFETY: the signature is that of cudnn.h.
        let version = unsafe { library.function::<unsafe extern "C" fn() -> usize>("cudnnGetVersion")?() };
        Some(format!("{} ({})", decimal_version(version), library.name))
    });
    let fix = || format!("sudo apt-get install cudnn9-cuda-12 {REPOSITORY}");
    version.map_or_else(
        || Finding::optional(PART, "speeds up convolutions with --device cuda", fix()),
        |version| Finding::found(PART, version),
    )
}

fn nccl() -> Finding {
    const PART: &str = "NCCL";
    let fix = || {
        format!(
            "sudo apt-get install libnccl2 {REPOSITORY}, or pip install nvidia-nccl-cu12 in the active environment \
             (or set NNUNET_DIST_NCCL=DIR)"
        )
    };
    nccl_version().map_or_else(
        |effect| Finding::optional(PART, format!("speeds up communication between GPUs: {effect}"), fix()),
        |version| Finding::found(PART, version),
    )
}

#[cfg(feature = "nccl")]
fn nccl_version() -> Result<String, String> {
    nnunet_comm::distributed::nccl_version()
}

#[cfg(not(feature = "nccl"))]
fn nccl_version() -> Result<String, String> {
    Err("not in this build (cargo build --features cuda)".into())
}

/// A part that `--device cuda` requires.
fn missing(part: &'static str, effect: &str, fix: String) -> Finding {
    if CUDA_BUILD {
        Finding::needed(part, effect, fix)
    } else {
        Finding::optional(part, format!("{effect} (this build has no CUDA: cargo build --features cuda)"), fix)
    }
}

/// Decodes `major * 10000 + minor * 100 + patch`, the version format of cuDNN 9 and of NCCL since 2.9.
fn decimal_version(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// The driver functions used, with their signatures in cuda.h.
struct Driver {
    init: unsafe extern "C" fn(u32) -> c_int,
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    device_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    device_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    device_memory: unsafe extern "C" fn(*mut usize, c_int) -> c_int,
}

impl Driver {
    fn load(library: &SharedLibrary) -> Option<Self> {
        // SAFETY: the types above are those of cuda.h, and the library is never closed.
        unsafe {
            Some(Self {
                init: *library.function("cuInit")?,
                version: *library.function("cuDriverGetVersion")?,
                device_count: *library.function("cuDeviceGetCount")?,
                device: *library.function("cuDeviceGet")?,
                device_name: *library.function("cuDeviceGetName")?,
                device_memory: *library.function("cuDeviceTotalMem_v2")?,
            })
        }
    }

    /// Latest CUDA version that the driver supports.
    fn version(&self) -> String {
        let mut version = 0;
        // SAFETY: the out-pointer is valid.
        match unsafe { (self.version)(&mut version) } {
            SUCCESS => format!("{}.{}", version / 1000, version % 1000 / 10),
            error => format!("of unknown version (error {error})"),
        }
    }

    /// Name and memory of each device, or the reason why there is none.
    fn devices(&self) -> Result<Vec<String>, String> {
        let mut count = 0;
        // SAFETY: the out-pointer is valid.
        unsafe {
            succeeds((self.init)(0), "cuInit")?;
            succeeds((self.device_count)(&mut count), "cuDeviceGetCount")?;
        }
        if count == 0 {
            return Err("there is no GPU".to_owned());
        }
        (0..count).map(|index| self.describe(index)).collect()
    }

    fn describe(&self, index: c_int) -> Result<String, String> {
        let mut name: [c_char; 128] = [0; 128];
        let (mut device, mut bytes) = (0, 0);
        // SAFETY: the out-pointers are valid; the name's last byte stays 0.
        let name = unsafe {
            succeeds((self.device)(&mut device, index), "cuDeviceGet")?;
            succeeds((self.device_name)(name.as_mut_ptr(), name.len() as c_int - 1, device), "cuDeviceGetName")?;
            succeeds((self.device_memory)(&mut bytes, device), "cuDeviceTotalMem")?;
            CStr::from_ptr(name.as_ptr())
        };
        Ok(format!("{index}: {} ({:.0} GiB)", name.to_string_lossy(), bytes as f64 / (1_u64 << 30) as f64))
    }
}

fn succeeds(status: c_int, function: &str) -> Result<(), String> {
    if status == SUCCESS { Ok(()) } else { Err(format!("{function} fails with error {status}")) }
}

/// A vendor library, kept open to the end of the process: unloading CUDA libraries is not safe.
pub(super) struct SharedLibrary {
    handle: &'static Library,
    /// The name under which it was found.
    pub(super) name: &'static str,
}

impl SharedLibrary {
    /// Opens the first of `names` that the loader finds.
    pub(super) fn open(names: &[&'static str]) -> Option<Self> {
        names.iter().find_map(|&name| {
            // SAFETY: these are vendor libraries, whose initializers may be run by any process.
            let library = unsafe { Library::new(name) }.ok()?;
            Some(Self { handle: Box::leak(Box::new(library)), name })
        })
    }

    /// Looks up a function of the library.
    ///
    /// # Safety
    /// `F` must be the function's type in the vendor's header.
    pub(super) unsafe fn function<F>(&self, name: &str) -> Option<Symbol<'static, F>> {
        // SAFETY: guaranteed by the caller.
        unsafe { self.handle.get(name.as_bytes()) }.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_decimal_versions() {
        assert_eq!(decimal_version(90_101), "9.1.1");
        assert_eq!(decimal_version(22_703), "2.27.3");
    }

    #[test]
    fn parts_are_required_only_by_a_cuda_build() {
        let super::super::PartState::Missing { needed, effect, fix } = missing("NVRTC", "for x", "get it".into()).state
        else {
            panic!("missing is missing");
        };
        assert_eq!(needed, CUDA_BUILD);
        assert!(effect.starts_with("for x") && effect.contains("--features cuda") != CUDA_BUILD, "{effect}");
        assert_eq!(fix, "get it");
    }
}
