//! Networks, built from plans with the operations of [`crate::ops`].
//!
//! A network is a flat list of named [`Parameter`]s and a description of the layers that refer to them by index. Names
//! and shapes are nnU-Net's, so weights can be exchanged. Gradients, optimizer, buckets and checkpoints work on the
//! list.

mod description;
mod init;
mod input;
mod layout;
mod parameter;
mod tensor_file;
mod unet;

pub use description::ModelDescription;
pub use input::batch_tensor;
pub use layout::UNetSpec;
pub use parameter::{Parameter, ParameterSpec, StateError, TensorState};
pub use tensor_file::{TensorFileError, parse_tensors, read_tensors, serialize_tensors, write_tensors};
pub use unet::{LayerHook, UNet};
