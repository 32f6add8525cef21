//! `Cuda` runs the reference implementations on Burn's own kernels.

use burn::backend::Cuda;
use burn::tensor::{DType, ops::FloatTensor};

use super::{DeviceBuffer, Element, NnOps};

impl NnOps for Cuda {
    fn device_buffer(tensor: &FloatTensor<Self>) -> Option<DeviceBuffer> {
        let element = match tensor.dtype {
            DType::F32 => Element::F32,
            DType::F16 => Element::F16,
            DType::BF16 => Element::Bf16,
            _ => return None,
        };
        if !tensor.is_contiguous() {
            return None;
        }
        // CubeCL launches on a thread of its own: `flush` returns when that has handed everything to the stream.
        tensor.client.flush().ok()?;
        let resource = tensor.client.get_resource(tensor.handle.clone()).ok()?;
        let len = tensor.meta.shape().num_elements();
        Some(DeviceBuffer { pointer: resource.resource().ptr, len, element })
    }
}
