//! Converts host arrays to the network's input tensor.

use burn::tensor::{FloatDType, Tensor, TensorData, backend::Backend};
use half::{bf16, f16};
use ndarray::ArrayView5;

/// Uploads images `(n, c, z, y, x)` as the network's input `(n, z, y, x, c)` in the activation type `dtype`. Rounding
/// to 16 bits on the host halves the transfer.
pub fn batch_tensor<B: Backend>(images: ArrayView5<f32>, dtype: FloatDType, device: &B::Device) -> Tensor<B, 5> {
    let (n, c, z, y, x) = images.dim();
    let shape = [n, z, y, x, c];
    let channels_last = || images.permuted_axes([0, 2, 3, 4, 1]);
    let mut data = match (dtype, images.as_slice()) {
        (FloatDType::F16, _) => TensorData::new(channels_last().iter().map(|v| f16::from_f32(*v)).collect(), shape),
        (FloatDType::BF16, _) => TensorData::new(channels_last().iter().map(|v| bf16::from_f32(*v)).collect(), shape),
        // With one channel, both layouts are the same.
        (_, Some(values)) if c == 1 => TensorData::new(values.to_vec(), shape),
        _ => TensorData::new(channels_last().iter().copied().collect(), shape),
    };
    // Pinned memory allows the GPU to copy while it computes.
    B::staging(std::iter::once(&mut data), device);
    Tensor::from_data(data, (device, dtype.into()))
}
