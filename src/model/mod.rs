//! The networks, built from plans on the operations of [`crate::ops`].
//!
//! A network is a flat list of named [`Parameter`]s (names and shapes are nnU-Net's, so weights can be exchanged) and a
//! description of the layers that refer to them by index. The list is what gradients, optimiser, buckets and checkpoints
//! work on.

mod init;
mod parameter;
mod unet;

pub use parameter::{Parameter, ParameterSpec, StateError, TensorState};
pub use unet::{UNet, UNetSpec};
