//! CUDA runtime: cuDNN convolutions, initialized for each GPU on first use.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::runtime::{GpuRuntime, buffer_dtype};
use crate::ops::cudnn::{ConvError, ConvProblem, Convolutions, Options};
use crate::ops::{ConvParams, ConvPass, is_tf32_allowed};

/// Alignment in bytes that the fastest cuDNN kernels require.
const ALIGNMENT: u64 = 16;

impl GpuRuntime for CudaRuntime {
    fn address(tensor: &CubeTensor<Self>) -> Option<u64> {
        // CubeCL launches kernels on its own thread, which answers this request after all earlier launches.
        let resource = tensor.client.get_resource(tensor.handle.clone()).ok()?;
        Some(resource.resource().ptr)
    }

    fn has_convolutions(device: &CudaDevice) -> bool {
        convolutions(device).is_some()
    }

    fn convolution(pass: ConvPass, tensors: [&CubeTensor<Self>; 3], params: ConvParams) -> bool {
        let [x, w, y] = tensors;
        let Some(convolutions) = convolutions(&x.device) else { return false };
        let Some(problem) = problem(pass, tensors, params) else { return false };
        if convolutions.cached_algo(&problem).is_some_and(|entry| entry.prefers_burn()) {
            return false;
        }
        let (Some(x_at), Some(w_at), Some(y_at)) = (Self::address(x), Self::address(w), Self::address(y)) else {
            return false;
        };
        let addresses = [x_at, w_at, y_at];
        if addresses.iter().any(|address| !address.is_multiple_of(ALIGNMENT)) {
            return false;
        }
        // SAFETY: the addresses are those of contiguous tensors of these extents, and CubeCL frees them in stream order
        // of the device.
        let run = || unsafe { convolutions.run(&problem, addresses) };
        let result = match run() {
            // CubeCL caches freed memory; release it and try again.
            Err(ConvError::OutOfMemory(_)) => {
                x.client.memory_cleanup();
                run()
            }
            result => result,
        };
        match result {
            Ok(()) => true,
            Err(ConvError::NoEngine(_)) => false,
            // Burn's operations cannot return errors.
            Err(error) => panic!("{error} ({problem})"),
        }
    }
}

/// Records the time of Burn's kernel for a convolution. If it is faster than cuDNN's, it is used from now on.
pub fn record_burn_timing(gpu: usize, problem: &ConvProblem, seconds: f64) {
    if let Some(convolutions) = convolutions(&CudaDevice::new(gpu)) {
        convolutions.record_burn_timing(problem, seconds);
    }
}

/// Returns `None` if cuDNN is not available for this GPU, with a warning on the first call.
fn convolutions(device: &CudaDevice) -> Option<&'static Convolutions> {
    static OPENED: LazyLock<Mutex<HashMap<usize, Option<&'static Convolutions>>>> = LazyLock::new(Mutex::default);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    *opened.entry(device.index).or_insert_with(|| match Convolutions::new(device.index, Options::default()) {
        // Lives as long as the process, like CubeCL's devices.
        Ok(convolutions) => Some(Box::leak(Box::new(convolutions))),
        Err(reason) => {
            tracing::warn!("{reason}: convolutions run on slower kernels; see nnunet-dist doctor");
            None
        }
    })
}

/// Returns `None` for types that cuDNN does not support.
fn problem(pass: ConvPass, [x, w, y]: [&CubeTensor<CudaRuntime>; 3], params: ConvParams) -> Option<ConvProblem> {
    let [n, input @ .., c_in] = x.shape().dims::<5>();
    let [c_out, kernel @ .., _] = w.shape().dims::<5>();
    let ConvParams { stride, padding, .. } = params;
    let dtype = buffer_dtype(y.dtype)?;
    let weight_dtype = buffer_dtype(w.dtype)?;
    Some(ConvProblem {
        pass,
        n,
        input,
        c_in,
        c_out,
        kernel,
        stride,
        padding,
        dtype,
        weight_dtype,
        tf32: is_tf32_allowed(),
    })
}
