//! Extensions of a CubeCL runtime: device addresses and vendor convolutions.

use burn::tensor::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};

use crate::ops::{BufferDtype, ConvParams, DeviceBuffer, Pass};

/// A CubeCL runtime that supports this crate's operations.
pub trait GpuRuntime: CubeRuntime {
    /// Returns the device address of a contiguous tensor, after submitting all work on it so far to the device.
    fn address(_tensor: &CubeTensor<Self>) -> Option<u64> {
        None
    }

    /// Whether this crate has a convolution library for the device.
    fn has_convolutions(_device: &Self::CubeDevice) -> bool {
        false
    }

    /// Runs a pass of a convolution on input `(n, z, y, x, c_in)`, weights `(c_out, kz, ky, kx, c_in)` and output, or
    /// their gradients. All are contiguous; the pass writes the one it computes. Returns false if the library does not
    /// support the problem or Burn's kernel is faster.
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

/// Returns `None` for types that vendor libraries do not support.
pub(super) fn element_of(dtype: DType) -> Option<BufferDtype> {
    match dtype {
        DType::F32 => Some(BufferDtype::F32),
        DType::F16 => Some(BufferDtype::F16),
        DType::BF16 => Some(BufferDtype::Bf16),
        _ => None,
    }
}
