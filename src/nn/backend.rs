//! The one file in which the compute backends are instantiated; everything else is generic over [`ComputeBackend`].

use burn::tensor::backend::AutodiffBackend;

use crate::Device;
use crate::ops::{NnOps, Precision, TapGradients};
use nnunet_comm::distributed::{CommError, Communicator};

/// What training needs of a backend: automatic differentiation, and our operations with and without it.
pub trait ComputeBackend: AutodiffBackend<InnerBackend: NnOps> + NnOps + TapGradients {}

impl<B: AutodiffBackend<InnerBackend: NnOps> + NnOps + TapGradients> ComputeBackend for B {}

/// Training on the CPU.
pub type Cpu = burn::backend::Autodiff<burn::backend::Flex>;

/// Inference on the CPU, which needs no gradients.
pub type CpuInference = burn::backend::Flex;

/// Work that any device can do.
pub trait OnDevice {
    type Output;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output;
}

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("this build has no {0} support: build it with `--features {0}`")]
    NotBuilt(&'static str),
    #[error("{0}")]
    Comm(#[from] CommError),
}

/// Does work on this rank's device; a collective where GPUs have not been chosen yet.
///
/// # Errors
/// This build, or this machine, has no such device.
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

/// Says so where the CPU, or its library, has no kernels for this precision, so that it is slower than f32.
fn warn_if_slow_on_cpu(precision: Precision) {
    if !crate::ops::cpu::onednn::has_kernels(precision) && precision != Precision::Fp32 {
        tracing::warn!("this machine has no kernels for bf16: --precision fp32 is faster; see nnunet-dist doctor");
    }
}

/// The format in which a device computes fastest: bfloat16, or IEEE half precision on GPUs that lack it.
pub fn mixed_precision(device: Device) -> Precision {
    #[cfg(feature = "nccl")]
    if device == Device::Cuda && !nnunet_comm::cuda::has_bf16() {
        return Precision::AmpFp16;
    }
    let _ = device;
    Precision::AmpBf16
}

/// Training on an NVIDIA GPU.
#[cfg(feature = "cuda")]
type Gpu = burn::backend::Autodiff<burn::backend::Cuda>;

/// The GPU of this rank: the one that the ranks have chosen, or choose now, which is a collective. What it multiplies is
/// rounded as `precision` says.
///
/// # Errors
/// Why there is none of its own, where Burn itself would panic.
#[cfg(feature = "cuda")]
pub fn gpu(comm: &dyn Communicator, precision: Precision) -> Result<burn::backend::cuda::CudaDevice, CommError> {
    crate::ops::tf32::allow(precision == Precision::Tf32);
    let number = match comm.gpu() {
        Some(number) => number,
        None => nnunet_comm::distributed::own_gpu(comm)?.0,
    };
    Ok(burn::backend::cuda::CudaDevice::new(number))
}
