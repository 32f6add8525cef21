//! Compute backends. This is the only file that instantiates them; all other code is generic over [`ComputeBackend`].

use burn::tensor::backend::AutodiffBackend;

use crate::Device;
use crate::ops::{GradHooks, NnOps, Precision};
use nnunet_comm::distributed::{CommError, Communicator};

/// Backend requirements of training: automatic differentiation, and this crate's operations with and without it.
pub trait ComputeBackend: AutodiffBackend<InnerBackend: NnOps> + NnOps + GradHooks {}

impl<B: AutodiffBackend<InnerBackend: NnOps> + NnOps + GradHooks> ComputeBackend for B {}

/// CPU training backend.
pub type Cpu = burn::backend::Autodiff<burn::backend::Flex>;

/// CPU inference backend, without gradients.
pub type CpuInference = burn::backend::Flex;

/// A computation generic over the backend, run by [`on_device`].
pub trait OnDevice {
    type Output;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output;
}

/// The requested device is not available.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("this build has no {0} support: build it with `--features {0}`")]
    NotBuilt(&'static str),
    #[error("{0}")]
    Comm(#[from] CommError),
}

/// Runs `work` on this rank's device. Collective if the ranks have not yet been assigned their GPUs.
///
/// # Errors
/// Returns an error if this build or this machine has no such device.
pub fn on_device<W: OnDevice>(
    device: Device,
    precision: Precision,
    comm: &dyn Communicator,
    work: W,
) -> Result<W::Output, DeviceError> {
    match device {
        Device::Cpu => {
            if comm.rank() == 0 {
                warn_if_slow_on_cpu(precision);
            }
            Ok(work.run::<Cpu>(Default::default()))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda => Ok(work.run::<Gpu>(gpu(comm, precision)?)),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => Err(DeviceError::NotBuilt("cuda")),
    }
}

/// Warns, once per process, if oneDNN is missing, or if it has no kernels for this precision, in which case it is slower
/// than f32.
fn warn_if_slow_on_cpu(precision: Precision) {
    if let Some(warning) = crate::ops::cpu::onednn::missing() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| tracing::warn!("{warning}"));
        return;
    }
    if !crate::ops::cpu::onednn::has_kernels(precision) && precision != Precision::Fp32 {
        tracing::warn!("this CPU has no bf16 kernels: --precision fp32 is faster; see nnunet-dist doctor");
    }
}

/// Returns the fastest mixed-precision format of a device: bfloat16, or IEEE half precision on GPUs without bfloat16.
pub fn mixed_precision(device: Device) -> Precision {
    #[cfg(feature = "nccl")]
    if device == Device::Cuda && !nnunet_comm::cuda::has_bf16() {
        return Precision::AmpFp16;
    }
    let _ = device;
    Precision::AmpBf16
}

/// GPU training backend (NVIDIA).
#[cfg(feature = "cuda")]
type Gpu = burn::backend::Autodiff<burn::backend::Cuda>;

/// Returns this rank's GPU. Collective if the ranks have not yet been assigned their GPUs. Enables or disables TF32
/// multiplication for the process according to `precision`.
///
/// # Errors
/// Returns an error if this rank has no GPU of its own, a case in which Burn itself would panic.
#[cfg(feature = "cuda")]
pub fn gpu(comm: &dyn Communicator, precision: Precision) -> Result<burn::backend::cuda::CudaDevice, CommError> {
    crate::ops::allow_tf32(precision == Precision::Tf32);
    let number = match comm.gpu() {
        Some(number) => number,
        None => nnunet_comm::distributed::own_gpu(comm)?.0,
    };
    Ok(burn::backend::cuda::CudaDevice::new(number))
}
