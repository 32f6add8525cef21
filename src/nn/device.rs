//! The device that tensors are computed on.

use serde::{Deserialize, Serialize};

/// Compute device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// Burn's `flex` backend with oneDNN's convolutions.
    Cpu,
    /// NVIDIA GPUs, one per local rank (cargo feature `cuda`).
    Cuda,
}
