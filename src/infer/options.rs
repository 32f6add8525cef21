//! What can be chosen about a prediction.

use std::path::PathBuf;

use super::gaussian::Blend;
use nnunet_nn::Device;
use nnunet_nn::ops::Precision;

/// Which networks are asked, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictOptions {
    /// The networks; several are an ensemble, see [`super::find_checkpoints`].
    pub checkpoints: Vec<PathBuf>,
    pub windows: WindowOptions,
    pub memory: MemoryOptions,
    /// Of the networks' activations.
    pub precision: Precision,
    pub device: Device,
}

/// How windows are laid and blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowOptions {
    /// Test-time augmentation: average over mirrorings.
    pub mirror: bool,
    /// Part of a window by which neighbours overlap, `0.0..1.0`.
    pub overlap: f64,
    pub blend: Blend,
}

impl Default for WindowOptions {
    /// nnU-Net's.
    fn default() -> Self {
        Self { mirror: true, overlap: 0.5, blend: Blend::Gaussian }
    }
}

/// What a prediction may spend memory on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Windows and their mirrorings per call of the network, at least 1; by default as many as `call_bytes` hold.
    pub batch_size: Option<usize>,
    /// Bytes that the activations of a call of the network may take, if it is not a single window that takes more; and on a
    /// GPU, an image and the sums of its logits: larger ones are added up on the host.
    pub call_bytes: u64,
    /// Precision of the sums of the windows' logits.
    pub accumulator_dtype: AccumulatorDtype,
    /// Bytes that these sums may take; where they would take more in f32, f16 is taken.
    pub limit: Option<u64>,
}

impl MemoryOptions {
    /// On a device. A GPU needs many voxels at a time to be busy; a CPU is with one window, and its caches hold no more.
    pub fn on(device: Device) -> Self {
        let call_bytes = match device {
            Device::Cpu => 64 << 20,
            Device::Cuda => 4 << 30,
        };
        Self { batch_size: None, call_bytes, accumulator_dtype: AccumulatorDtype::F32, limit: None }
    }
}

impl Default for MemoryOptions {
    /// On the CPU.
    fn default() -> Self {
        Self::on(Device::Cpu)
    }
}

/// Precision in which the logits of overlapping windows are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum AccumulatorDtype {
    /// Single precision.
    #[default]
    F32,
    /// Half the memory, three digits: as precise as nnU-Net v2, which adds up in f16 as well.
    F16,
}

impl AccumulatorDtype {
    /// Bytes of a logit.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}
