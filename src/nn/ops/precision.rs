//! Number format of activations, and the process-wide TF32 setting.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use crate::Device;

/// Number format of activations. Weights, statistics, losses and reductions are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    Fp32,
    /// f32 in memory; tensor cores multiply with 10-bit mantissas (TF32, NVIDIA GPUs from compute capability 8.0).
    Tf32,
    /// bfloat16 activations, with weights rounded to bfloat16 where they are multiplied: twice as fast and half the
    /// memory on tensor cores and on CPUs with AVX-512 BF16 or AMX. Has the range of f32, so the loss is not scaled.
    AmpBf16,
    /// IEEE half precision activations, GPU only: as fast as bfloat16 on tensor cores and eight times as precise, but
    /// with a smaller range, so the loss is scaled (Micikevicius et al. 2018).
    AmpFp16,
}

impl Precision {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::AmpBf16 => "amp-bf16",
            Self::AmpFp16 => "amp-fp16",
        }
    }

    /// Returns the type of activations.
    pub fn activations(self) -> FloatDType {
        match self {
            Self::Fp32 | Self::Tf32 => FloatDType::F32,
            Self::AmpBf16 => FloatDType::BF16,
            Self::AmpFp16 => FloatDType::F16,
        }
    }

    /// Whether the loss is scaled to keep small gradients from underflowing.
    pub fn scales_loss(self) -> bool {
        self == Self::AmpFp16
    }

    /// Whether CPUs support this format.
    pub fn is_supported_on_cpu(self) -> bool {
        matches!(self, Self::Fp32 | Self::AmpBf16)
    }

    /// Checks that a device supports this format. The error is a defect to be printed after the setting's name.
    pub fn check(self, device: Device) -> Result<(), String> {
        if device == Device::Cuda || self.is_supported_on_cpu() {
            return Ok(());
        }
        let name = self.name();
        Err(format!("{name} requires a GPU; the CPU supports fp32 or amp-bf16"))
    }
}

/// Whether f32 convolutions may use TF32.
static TF32_ALLOWED: AtomicBool = AtomicBool::new(false);

/// Enables or disables rounding the inputs of f32 convolutions to 10-bit mantissas (TF32) in this process, like
/// PyTorch's `torch.backends.cudnn.allow_tf32`.
pub fn allow_tf32(allowed: bool) {
    TF32_ALLOWED.store(allowed, Ordering::Relaxed);
}

/// Whether TF32 is enabled; false by default.
pub fn is_tf32_allowed() -> bool {
    TF32_ALLOWED.load(Ordering::Relaxed)
}
