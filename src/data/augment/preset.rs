//! The named lists of transforms.

use serde::{Deserialize, Serialize};

/// Augmentation transforms of training patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum AugmentationPreset {
    /// Complete list of nnU-Net v2.
    Nnunet,
    /// Shorter list of NVIDIA's nnU-Net: zoom, mirroring, noise, blur, brightness and contrast.
    #[serde(alias = "basic")]
    #[cfg_attr(feature = "clap", value(alias = "basic"))]
    Nvidia,
    /// Longest list of nnU-Net v2 (`nnUNetTrainerDA5`).
    Strong,
    /// No augmentation.
    None,
}
