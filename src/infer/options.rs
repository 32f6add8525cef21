//! Options for prediction, and the batching that follows from them.

use std::path::PathBuf;

use super::windows::Blend;
use nnunet_nn::Device;
use nnunet_nn::ops::Precision;

/// Networks, windows, memory, precision and device of a prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictOptions {
    /// Checkpoints of the networks; several form an ensemble, see [`super::find_checkpoints`].
    pub checkpoints: Vec<PathBuf>,
    pub windows: WindowOptions,
    pub memory: MemoryOptions,
    /// Precision of the networks' activations.
    pub precision: Precision,
    pub device: Device,
}

/// Placement and blending of windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowOptions {
    /// Test-time augmentation: average the logits over mirrored inputs.
    pub mirror: bool,
    /// Overlap of neighboring windows as a fraction of the window size, `0.0..1.0`.
    pub overlap: f64,
    pub blend: Blend,
}

impl Default for WindowOptions {
    /// Defaults of nnU-Net.
    fn default() -> Self {
        Self { mirror: true, overlap: 0.5, blend: Blend::Gaussian }
    }
}

/// Memory use of a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Windows, mirrored ones included, per forward call of the network, at least 1; by default as many as fit into
    /// `activation_bytes`.
    pub batch_size: Option<usize>,
    /// Memory limit in bytes for the activations of one forward call; a single window may exceed it. On a GPU it also
    /// limits the image with its accumulated logits: larger images are accumulated on the host.
    pub activation_bytes: u64,
    /// Data type of the accumulated logits.
    pub accumulator_dtype: AccumulatorDtype,
    /// Memory limit in bytes for the accumulated logits; if they exceed it in f32, they are accumulated in f16.
    pub limit: Option<u64>,
}

impl MemoryOptions {
    /// Returns the defaults for a device. A GPU needs many voxels per call to be fully used; a CPU is fully used by one
    /// window, and its caches hold no more.
    pub fn on(device: Device) -> Self {
        let activation_bytes = match device {
            Device::Cpu => 64 << 20,
            Device::Cuda => 4 << 30,
        };
        Self { batch_size: None, activation_bytes, accumulator_dtype: AccumulatorDtype::F32, limit: None }
    }
}

impl Default for MemoryOptions {
    /// Defaults for the CPU.
    fn default() -> Self {
        Self::on(Device::Cpu)
    }
}

/// Data type in which the logits of overlapping windows are accumulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum AccumulatorDtype {
    /// Single precision.
    #[default]
    F32,
    /// Half precision: half the memory, three significant digits, as in nnU-Net v2.
    F16,
}

impl AccumulatorDtype {
    /// Bytes per logit.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Batching of the work on an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Windows, mirrored ones included, per forward call of the network.
    pub batch_size: usize,
    /// Data type of the accumulated logits.
    pub accumulator_dtype: AccumulatorDtype,
    /// Whether image and accumulated logits, in f32, may be stored on the device.
    pub on_device: bool,
}
