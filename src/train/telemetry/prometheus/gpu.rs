//! What NVML says of a GPU.

use std::sync::OnceLock;

use nvml_wrapper::{Device, Nvml, error::NvmlError};

use super::GpuReading;
use nnunet_comm::cuda::Driver;

/// A GPU as NVML knows it, which numbers them in another way than CUDA does.
pub struct GpuMeter(Device<'static>);

impl GpuMeter {
    /// The GPU that has this number among those that the process sees.
    ///
    /// # Errors
    /// There is no CUDA driver, no such GPU, or no NVML that knows it.
    pub fn open(gpu: usize) -> Result<Self, String> {
        let uuid = Driver::open()?.uuid(gpu).map_err(|error| error.to_string())?;
        // NVML has another word for a part of a GPU.
        let names = [uuid.clone(), uuid.replacen("GPU-", "MIG-", 1)];
        let nvml = nvml()?;
        let found = names.into_iter().map(|name| nvml.device_by_uuid(name)).reduce(Result::or);
        let device = found.unwrap_or(Err(NvmlError::NotFound));
        device.map(Self).map_err(|error| format!("NVML does not know {uuid}: {error}"))
    }

    /// How it is now; what it does not tell is left out.
    pub fn read(&self) -> GpuReading {
        GpuReading {
            memory: self.0.memory_info().ok().map(|memory| [memory.used, memory.total]),
            utilization: self.0.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        }
    }
}

/// The library, opened once.
fn nvml() -> Result<&'static Nvml, String> {
    static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
    NVML.get_or_init(|| Nvml::init().map_err(|error| format!("NVML: {error}"))).as_ref().map_err(Clone::clone)
}
