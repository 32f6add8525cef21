//! Communication of the ranks of a job, and the NVIDIA libraries that it needs.
//!
//! [`distributed`] has the collectives over MPI and NCCL. [`DeviceBuffer`] is a tensor's memory as these libraries and the
//! GPU kernels share it; `cuda` opens the driver.

#[cfg(feature = "nccl")]
pub mod cuda;
mod device_buffer;
pub mod distributed;

pub use device_buffer::{BufferDtype, DeviceBuffer};
