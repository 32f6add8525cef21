//! Error type of server startup.

use std::io;
use std::net::SocketAddr;

use nnunet_infer::InferError;
use nnunet_nn::backend::DeviceError;

/// A server that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The networks cannot be read.
    #[error("{0}")]
    Infer(#[from] InferError),
    /// The build or the machine does not support the device.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// The address is in use or not local.
    #[error("--listen {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    /// The system cannot create threads or register signal handlers.
    #[error("the server cannot be started: {0}")]
    System(io::Error),
}
