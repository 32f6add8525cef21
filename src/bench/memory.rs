//! Memory of this process, and of a training step.

use super::{Row, StepBench};
use nnunet_comm::distributed::CommError;
use nnunet_data::plan::estimate_memory_gb;
use nnunet_nn::Device;
use nnunet_nn::backend::ComputeBackend;

/// Peak resident memory of this process so far; `None` if the kernel does not report it (`VmHWM`, Linux).
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Bytes in use on a device: used by all processes on the first GPU; peak of this process on the CPU.
pub fn memory_in_use(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => peak_resident_bytes(),
        #[cfg(feature = "nccl")]
        Device::Cuda => nnunet_comm::cuda::memory_in_use(0),
        #[cfg(not(feature = "nccl"))]
        Device::Cuda => None,
    }
}

/// Memory of training steps, and the planner's estimate.
#[derive(Clone, Debug)]
pub struct StepMemory {
    /// Bytes in use on the device after some steps; a peak, because Burn's pool does not release memory. On the CPU,
    /// the peak of the process. `None` if the system does not report it.
    pub peak_bytes: Option<u64>,
    /// Bytes in use on the device before the steps.
    pub before_bytes: Option<u64>,
    pub planned_gb: f64,
    /// Times of the steps.
    pub steps: Vec<Row>,
}

impl StepBench {
    /// Runs a few steps and measures their memory.
    ///
    /// # Errors
    /// Never returns an error with a single process.
    pub fn memory<B: ComputeBackend>(&self, kind: Device, device: B::Device) -> Result<StepMemory, CommError> {
        let before_bytes = memory_in_use(kind);
        let steps = self.run::<B>(device, 1)?;
        let Self { network, patch, batch_size, .. } = self;
        let planned_gb = estimate_memory_gb(&network.shape, *patch, network.classes, *batch_size);
        Ok(StepMemory { peak_bytes: memory_in_use(kind), before_bytes, planned_gb, steps })
    }
}
