//! GPU measurements from NVML.

use std::sync::OnceLock;

use nvml_wrapper::{Device, Nvml, error::NvmlError};

use super::GpuReading;
use nnunet_comm::cuda::Driver;

/// An NVML device handle. NVML numbers the GPUs differently from CUDA.
pub struct GpuMeter(Device<'static>);

impl GpuMeter {
    /// Opens the GPU with this index among those visible to the process.
    ///
    /// # Errors
    /// Returns an error if there is no CUDA driver, no such GPU, or no NVML that supports it.
    pub fn open(gpu: usize) -> Result<Self, String> {
        let uuid = Driver::open()?.uuid(gpu).map_err(|error| error.to_string())?;
        // NVML uses a different prefix for a MIG instance.
        let names = [uuid.clone(), uuid.replacen("GPU-", "MIG-", 1)];
        let nvml = nvml()?;
        let found = names.into_iter().map(|name| nvml.device_by_uuid(name)).reduce(Result::or);
        let device = found.unwrap_or(Err(NvmlError::NotFound));
        device.map(Self).map_err(|error| format!("NVML does not know {uuid}: {error}"))
    }

    /// Reads the current values; unavailable values are `None`.
    pub fn read(&self) -> GpuReading {
        GpuReading {
            memory: self.0.memory_info().ok().map(|memory| [memory.used, memory.total]),
            utilization: self.0.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        }
    }
}

/// Loads NVML on the first call.
fn nvml() -> Result<&'static Nvml, String> {
    static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
    NVML.get_or_init(|| Nvml::init().map_err(|error| format!("NVML: {error}"))).as_ref().map_err(Clone::clone)
}
