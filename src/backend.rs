//! The one file in which the compute backends are instantiated; everything else is generic over [`ComputeBackend`].

use burn::tensor::backend::AutodiffBackend;

use crate::ops::{NnOps, Precision, TapGradients};

/// What training needs of a backend: automatic differentiation, and our operations with and without it.
pub trait ComputeBackend: AutodiffBackend<InnerBackend: NnOps> + NnOps + TapGradients {}

impl<B: AutodiffBackend<InnerBackend: NnOps> + NnOps + TapGradients> ComputeBackend for B {}

/// Training on the CPU.
pub type Cpu = burn::backend::Autodiff<burn::backend::Flex>;

/// Says so where the CPU, or its library, has no kernels for this precision, so that it is slower than f32.
pub fn warn_if_slow_on_cpu(precision: Precision) {
    if !crate::ops::cpu::onednn::has_kernels(precision) && precision != Precision::Fp32 {
        tracing::warn!("this machine has no kernels for bf16: --precision fp32 is faster; see nnunet-dist doctor");
    }
}

/// Training on an NVIDIA GPU.
#[cfg(feature = "cuda")]
pub type Gpu = burn::backend::Autodiff<burn::backend::Cuda>;

/// The GPU of this rank: the one that the ranks have chosen, or choose now, which is a collective.
///
/// # Errors
/// Why there is none of its own, where Burn itself would panic.
#[cfg(feature = "cuda")]
pub fn gpu(comm: &dyn crate::dist::Communicator) -> Result<burn::backend::cuda::CudaDevice, crate::dist::CommError> {
    let number = match comm.gpu() {
        Some(number) => number,
        None => crate::dist::own_gpu(comm)?.0,
    };
    Ok(burn::backend::cuda::CudaDevice::new(number))
}
