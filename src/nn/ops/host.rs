//! Values of tensors in the host's memory.

use burn::tensor::{backend::Backend, ops::FloatTensor};

/// A tensor's values, in C order, as f32 whatever it is made of; waits for the device.
pub fn host<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let data = burn::tensor::read_sync(B::float_into_data(tensor)).expect("reading back needs no more than the device");
    data.convert::<f32>().into_vec().expect("converted to f32")
}
