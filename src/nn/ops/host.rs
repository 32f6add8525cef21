//! Copies tensor values to the host.

use burn::tensor::{backend::Backend, ops::FloatTensor};

/// Returns a tensor's values in C order, converted to f32. Waits for the device.
pub fn host<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let data = burn::tensor::read_sync(B::float_into_data(tensor)).expect("reading back cannot fail");
    data.convert::<f32>().into_vec().expect("converted to f32")
}
