//! The number format of activations.

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use crate::Device;

/// Number format of activations; weights, statistics, losses and reductions are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    Fp32,
    /// Single precision in memory; tensor cores multiply with ten binary digits (TF32, NVIDIA from compute capability 8.0).
    Tf32,
    /// bfloat16 activations, and weights rounded to it where they meet them: twice as fast on processors with AVX-512
    /// BF16 or AMX and on tensor cores, half the memory. Its range is that of f32, so the loss needs no scaling.
    AmpBf16,
    /// IEEE half precision activations: as fast as bfloat16 on tensor cores, eight times as precise, but of a range so small
    /// that the loss is scaled (Micikevicius et al. 2018). On GPUs only.
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

    /// The type of activations.
    pub fn activations(self) -> FloatDType {
        match self {
            Self::Fp32 | Self::Tf32 => FloatDType::F32,
            Self::AmpBf16 => FloatDType::BF16,
            Self::AmpFp16 => FloatDType::F16,
        }
    }

    /// Whether the loss is multiplied by a scale, so that small gradients do not become 0.
    pub fn scales_loss(self) -> bool {
        self == Self::AmpFp16
    }

    /// Whether CPUs have it too.
    pub fn is_for_cpus(self) -> bool {
        matches!(self, Self::Fp32 | Self::AmpBf16)
    }

    /// Checks that a device has it; the error is what is wrong with the choice, to stand after its name.
    pub fn check(self, device: Device) -> Result<(), String> {
        if device == Device::Cuda || self.is_for_cpus() {
            return Ok(());
        }
        let name = self.name();
        Err(format!("{name} is for GPUs; on the CPU it must be fp32 or amp-bf16"))
    }
}
