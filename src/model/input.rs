//! From host arrays to the network's input.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use ndarray::ArrayView5;

/// Images `(n, c, z, y, x)` as the network's input `(n, z, y, x, c)` on the device.
pub fn batch_tensor<B: Backend>(images: ArrayView5<f32>, device: &B::Device) -> Tensor<B, 5> {
    let (n, c, z, y, x) = images.dim();
    let channels_last = images.permuted_axes([0, 2, 3, 4, 1]);
    // With one channel the layouts are the same.
    let values = match images.as_slice() {
        Some(values) if c == 1 => values.to_vec(),
        _ => channels_last.iter().copied().collect(),
    };
    let mut data = TensorData::new(values, [n, z, y, x, c]);
    // In memory that a GPU can copy from while it computes.
    B::staging(std::iter::once(&mut data), device);
    Tensor::from_data(data, device)
}
