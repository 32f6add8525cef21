//! The named lists of transforms.

use serde::{Deserialize, Serialize};

/// Which transforms training patches go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum AugmentationPreset {
    /// nnU-Net v2's complete list.
    Nnunet,
    /// NVIDIA nnU-Net's shorter list: zoom, mirroring, noise, blur, brightness and contrast.
    #[serde(alias = "basic")]
    #[cfg_attr(feature = "clap", value(alias = "basic"))]
    Nvidia,
    /// nnU-Net v2's longest list (`nnUNetTrainerDA5`).
    Strong,
    /// The patch as it was cut.
    None,
}
