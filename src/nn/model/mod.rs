//! The networks, built from plans on the operations of [`crate::ops`].
//!
//! A network is a flat list of named [`Parameter`]s (names and shapes are nnU-Net's, so weights can be exchanged) and a
//! description of the layers that refer to them by index. The list is what gradients, optimiser, buckets and checkpoints
//! work on.

mod description;
mod init;
mod input;
mod layout;
mod parameter;
mod tensor_file;
mod unet;

pub use description::ModelDescription;
pub use input::batch_tensor;
pub use parameter::{Parameter, ParameterSpec, StateError, TensorState};
pub use tensor_file::{TensorFileError, parse_tensors, read_tensors, serialize_tensors, write_tensors};
pub use unet::{Tap, UNet, UNetSpec};
