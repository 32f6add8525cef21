//! The number format of activations.

use burn::tensor::FloatDType;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Number format of activations; weights, statistics, losses and reductions are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    Fp32,
    /// bfloat16 activations, and weights rounded to it where they meet them: twice as fast on processors with AVX-512
    /// BF16 or AMX, half the memory. Its range is that of f32, so the loss needs no scaling.
    AmpBf16,
}

impl Precision {
    /// The type of activations.
    pub fn activations(self) -> FloatDType {
        match self {
            Self::Fp32 => FloatDType::F32,
            Self::AmpBf16 => FloatDType::BF16,
        }
    }
}
