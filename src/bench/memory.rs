//! The memory of this process, and of a training step.

use super::{Row, StepBench};
use nnunet_comm::distributed::CommError;
use nnunet_data::plan::assumed_memory_gb;
use nnunet_nn::Device;
use nnunet_nn::backend::ComputeBackend;

/// The most memory this process has had resident so far, or `None` where the kernel does not tell (`VmHWM`, Linux).
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Bytes in use on a device: of the first GPU, by whomever; of the CPU, the peak of this process.
pub fn memory_in_use(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => peak_resident_bytes(),
        #[cfg(feature = "nccl")]
        Device::Cuda => nnunet_comm::cuda::memory_in_use(0),
        #[cfg(not(feature = "nccl"))]
        Device::Cuda => None,
    }
}

/// What training steps take, beside what the planner takes them to need.
#[derive(Clone, Debug)]
pub struct StepMemory {
    /// In use on the device after some steps: Burn's pool keeps what it once had, so this is the peak. Of the CPU, the peak of
    /// the process. `None` where the system does not tell.
    pub peak_bytes: Option<u64>,
    /// On the device beforehand.
    pub before_bytes: Option<u64>,
    pub planned_gb: f64,
    /// The steps, timed.
    pub steps: Vec<Row>,
}

impl StepBench {
    /// Makes a few steps.
    ///
    /// # Errors
    /// None where there is one process.
    pub fn memory<B: ComputeBackend>(&self, kind: Device, device: B::Device) -> Result<StepMemory, CommError> {
        let before_bytes = memory_in_use(kind);
        let steps = self.run::<B>(device, 1)?;
        let Self { network, patch, batch_size, .. } = self;
        let planned_gb = assumed_memory_gb(&network.shape, *patch, network.classes, *batch_size);
        Ok(StepMemory { peak_bytes: memory_in_use(kind), before_bytes, planned_gb, steps })
    }
}
