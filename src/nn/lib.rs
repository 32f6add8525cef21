//! Networks on Burn: operations with kernels of their own, the U-Nets, losses, optimizers and checkpoints.

pub mod backend;
pub mod checkpoint;
mod device;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;

pub use device::Device;
