//! What NVIDIA's GPUs have beyond the kernels: cuDNN's convolutions, each GPU's opened when it is first used.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::runtime::{GpuRuntime, element_of};
use crate::ops::cudnn::{ConvError, Convolutions, Options, Problem};
use crate::ops::{ConvParams, Pass, tf32};

/// cuDNN's tensors begin at such addresses, which its fastest kernels need.
const ALIGNMENT: u64 = 16;

impl GpuRuntime for CudaRuntime {
    fn address(tensor: &CubeTensor<Self>) -> Option<u64> {
        // CubeCL launches on a thread of its own, which answers this question when it has launched all before it.
        let resource = tensor.client.get_resource(tensor.handle.clone()).ok()?;
        Some(resource.resource().ptr)
    }

    fn has_convolutions(device: &CudaDevice) -> bool {
        convolutions(device).is_some()
    }

    fn convolution(pass: Pass, tensors: [&CubeTensor<Self>; 3], params: ConvParams) -> bool {
        let [x, w, y] = tensors;
        let Some(convolutions) = convolutions(&x.device) else { return false };
        let Some(problem) = problem(pass, tensors, params) else { return false };
        if convolutions.choice(&problem).is_some_and(|choice| choice.is_burns()) {
            return false;
        }
        let (Some(x_at), Some(w_at), Some(y_at)) = (Self::address(x), Self::address(w), Self::address(y)) else {
            return false;
        };
        let addresses = [x_at, w_at, y_at];
        if addresses.iter().any(|address| !address.is_multiple_of(ALIGNMENT)) {
            return false;
        }
        // SAFETY: they are the addresses of contiguous tensors of these extents, which CubeCL frees in the order of the
        // device's work.
        let run = || unsafe { convolutions.run(&problem, addresses) };
        let result = match run() {
            // CubeCL keeps what it has freed.
            Err(ConvError::OutOfMemory(_)) => {
                x.client.memory_cleanup();
                run()
            }
            result => result,
        };
        match result {
            Ok(()) => true,
            Err(ConvError::NoEngine(_)) => false,
            // An operation of Burn's cannot fail otherwise.
            Err(error) => panic!("{error} ({problem})"),
        }
    }
}

/// Notes how long Burn's kernel takes for a convolution: where it is faster than cuDNN's, it is run from now on.
pub fn note_burns(gpu: usize, problem: &Problem, seconds: f64) {
    if let Some(convolutions) = convolutions(&CudaDevice::new(gpu)) {
        convolutions.note_burns(problem, seconds);
    }
}

/// `None` where there is no cuDNN for this GPU, which is said once.
fn convolutions(device: &CudaDevice) -> Option<&'static Convolutions> {
    static OPENED: LazyLock<Mutex<HashMap<usize, Option<&'static Convolutions>>>> = LazyLock::new(Mutex::default);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    *opened.entry(device.index).or_insert_with(|| match Convolutions::new(device.index, Options::default()) {
        // It lives as long as the process, as CubeCL's devices do.
        Ok(convolutions) => Some(Box::leak(Box::new(convolutions))),
        Err(reason) => {
            tracing::warn!("{reason}: convolutions run on slower kernels; see nnunet-dist doctor");
            None
        }
    })
}

/// `None` for a type that cuDNN does not have.
fn problem(pass: Pass, [x, w, y]: [&CubeTensor<CudaRuntime>; 3], params: ConvParams) -> Option<Problem> {
    let [n, input @ .., c_in] = x.shape().dims::<5>();
    let [c_out, kernel @ .., _] = w.shape().dims::<5>();
    let ConvParams { stride, padding, .. } = params;
    let element = element_of(y.dtype)?;
    let weight_element = element_of(w.dtype)?;
    Some(Problem {
        pass,
        n,
        input,
        c_in,
        c_out,
        kernel,
        stride,
        padding,
        element,
        weight_element,
        tf32: tf32::allowed(),
    })
}
