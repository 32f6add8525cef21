//! What a runtime of CubeCL has beyond its kernels.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

use crate::ops::{ConvParams, DeviceBuffer, Element, Pass};

/// A runtime with the operations of this crate.
pub trait GpuRuntime: CubeRuntime {
    /// Where a contiguous tensor lies in the memory of its device, once all work on it so far has been handed to it.
    fn address(_tensor: &CubeTensor<Self>) -> Option<u64> {
        None
    }

    /// Whether the device's vendor has a library of convolutions here.
    fn has_convolutions(_device: &Self::CubeDevice) -> bool {
        false
    }

    /// Runs a pass of a convolution: input `(n, z, y, x, c_in)`, weights `(c_out, kz, ky, kx, c_in)`, output, or their
    /// gradients; all contiguous, and the one that the pass computes is written to. False where the library has none for
    /// these, or where Burn's kernel is faster.
    fn convolution(_pass: Pass, _tensors: [&CubeTensor<Self>; 3], _params: ConvParams) -> bool {
        false
    }
}

#[cfg(feature = "vulkan")]
impl GpuRuntime for burn::backend::wgpu::WgpuRuntime {
    fn has_convolutions(_: &Self::CubeDevice) -> bool {
        true
    }

    fn convolution(pass: Pass, tensors: [&CubeTensor<Self>; 3], params: ConvParams) -> bool {
        super::direct::convolution(pass, tensors, params);
        true
    }
}

/// See [`crate::ops::NnOps::device_buffer`].
pub(super) fn device_buffer<R: GpuRuntime>(tensor: &CubeTensor<R>) -> Option<DeviceBuffer> {
    let element = element_of(tensor.dtype)?;
    if !tensor.is_contiguous() {
        return None;
    }
    let len = tensor.meta.shape().num_elements();
    Some(DeviceBuffer { pointer: R::address(tensor)?, len, element })
}

/// `None` where vendors' libraries have no such type.
pub(super) fn element_of(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F32 => Some(Element::F32),
        DType::F16 => Some(Element::F16),
        DType::BF16 => Some(Element::Bf16),
        _ => None,
    }
}
