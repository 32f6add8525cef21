//! What a server is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nnunet_infer::PredictOptions;

/// A server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServeOptions {
    /// Where it listens; with port 0 the system chooses one.
    pub listen: SocketAddr,
    /// Which networks answer, and how.
    pub predict: PredictOptions,
    /// If they are the second stage of a cascade, the checkpoints of the first; otherwise none.
    pub first_stage: Vec<PathBuf>,
    pub limits: ServeLimits,
    /// Where images lie while they are worked on.
    pub spool: PathBuf,
}

/// What clients may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeLimits {
    /// Images taken on at a time, those being received and the one being predicted included.
    pub queue: usize,
    /// Bytes of a request's body.
    pub upload_bytes: u64,
    /// Bytes of an image in memory, 4 per voxel and channel, as it comes and as the networks see it; and of its files once
    /// they are decompressed.
    pub image_bytes: u64,
    /// From the beginning of a request to the end of its body.
    pub upload_time: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self { queue: 16, upload_bytes: 512 << 20, image_bytes: 2 << 30, upload_time: Duration::from_secs(120) }
    }
}
