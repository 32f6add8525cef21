//! Server options, limits and startup errors.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nnunet_infer::{InferError, PredictOptions};
use nnunet_nn::backend::DeviceError;

/// Options of [`super::serve`].
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// Address to listen on; with port 0 the system chooses one.
    pub listen: SocketAddr,
    /// Networks and prediction options.
    pub predict: PredictOptions,
    /// Checkpoints of the first stage for a cascade; otherwise empty.
    pub first_stage: Vec<PathBuf>,
    pub limits: ServeLimits,
    /// Folder for images in progress.
    pub spool: PathBuf,
}

/// Limits of client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Maximum number of images accepted at a time, including those being received and the one being predicted.
    pub queue: usize,
    /// Maximum bytes of a request body.
    pub upload_bytes: u64,
    /// Maximum bytes of an image in memory (4 per voxel and channel), as stored and after resampling; also the limit of
    /// its decompressed files.
    pub image_bytes: u64,
    /// Maximum time from the start of a request to the end of its body.
    pub upload_time: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self { queue: 16, upload_bytes: 512 << 20, image_bytes: 2 << 30, upload_time: Duration::from_secs(120) }
    }
}

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
