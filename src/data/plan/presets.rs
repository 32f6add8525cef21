//! Presets of nnU-Net v2's planners: one algorithm with different networks and constants.

use super::network::Network;
use super::networks::{PLAIN_CONV_UNET, RESIDUAL_ENCODER_UNET};

/// Planners of nnU-Net v2; also accepted by class name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Planner {
    /// Plain U-Net, for 8 GB of GPU memory (ExperimentPlanner).
    #[cfg_attr(feature = "clap", value(alias = "ExperimentPlanner"))]
    Default,
    /// Residual encoder U-Net, for 8 GB of GPU memory (nnUNetPlannerResEncM).
    #[cfg_attr(feature = "clap", value(name = "resenc-m", alias = "nnUNetPlannerResEncM"))]
    ResEncM,
    /// Residual encoder U-Net, for 24 GB of GPU memory (nnUNetPlannerResEncL).
    #[cfg_attr(feature = "clap", value(name = "resenc-l", alias = "nnUNetPlannerResEncL"))]
    ResEncL,
    /// Residual encoder U-Net, for 40 GB of GPU memory (nnUNetPlannerResEncXL).
    #[cfg_attr(feature = "clap", value(name = "resenc-xl", alias = "nnUNetPlannerResEncXL"))]
    ResEncXl,
}

impl Planner {
    /// All planners.
    pub const ALL: [Self; 4] = [Self::Default, Self::ResEncM, Self::ResEncL, Self::ResEncXl];
}

/// Constants of a planner (nnU-Net's `default_experiment_planner.py` and `residual_encoder_unet_planners.py`).
pub(super) struct Preset {
    /// Class name in nnU-Net.
    pub class: &'static str,
    pub plans_name: &'static str,
    pub network: &'static Network,
    /// Default GPU memory in GB, to which `feature_maps` refers.
    pub gpu_memory_gb: f64,
    /// Feature map elements of one sample, in a batch of the reference size, that fill this GPU memory; for 2D and 3D.
    pub feature_maps: [f64; 2],
    /// Blocks of each encoder stage; the last entry applies to all further stages.
    pub blocks_encoder: &'static [usize],
    /// Convolutions of each decoder stage.
    pub convs_decoder: usize,
    /// Maximum fraction of the dataset's voxels in a batch.
    pub max_dataset_fraction: f64,
    /// True if a patch fits as soon as it fits with the smallest batch; false requires the reference batch.
    pub fits_with_smallest_batch: bool,
    /// Plans whose preprocessed data are shared for `2d` and `3d_fullres`, to avoid a copy under another name.
    pub shares_data_with: Option<&'static str>,
}

const DEFAULT: Preset = Preset {
    class: "ExperimentPlanner",
    plans_name: "nnUNetPlans",
    network: &PLAIN_CONV_UNET,
    gpu_memory_gb: 8.0,
    feature_maps: [85e6, 560e6],
    blocks_encoder: &[2],
    convs_decoder: 2,
    max_dataset_fraction: 0.05,
    fits_with_smallest_batch: true,
    shares_data_with: None,
};

const RES_ENC_M: Preset = Preset {
    class: "nnUNetPlannerResEncM",
    plans_name: "nnUNetResEncUNetMPlans",
    network: &RESIDUAL_ENCODER_UNET,
    gpu_memory_gb: 8.0,
    feature_maps: [135e6, 680e6],
    blocks_encoder: &[1, 3, 4, 6],
    convs_decoder: 1,
    max_dataset_fraction: 1.0,
    fits_with_smallest_batch: false,
    shares_data_with: Some(DEFAULT.plans_name),
};

const RES_ENC_L: Preset = Preset {
    class: "nnUNetPlannerResEncL",
    plans_name: "nnUNetResEncUNetLPlans",
    gpu_memory_gb: 24.0,
    feature_maps: [380e6, 2100e6],
    ..RES_ENC_M
};

const RES_ENC_XL: Preset = Preset {
    class: "nnUNetPlannerResEncXL",
    plans_name: "nnUNetResEncUNetXLPlans",
    gpu_memory_gb: 40.0,
    feature_maps: [560e6, 3600e6],
    ..RES_ENC_M
};

impl Planner {
    /// Returns the default GPU memory in GB.
    pub fn gpu_memory_gb(self) -> f64 {
        self.preset().gpu_memory_gb
    }

    /// Returns the default name of the plans.
    pub fn plans_name(self) -> &'static str {
        self.preset().plans_name
    }

    pub(super) fn preset(self) -> &'static Preset {
        match self {
            Self::Default => &DEFAULT,
            Self::ResEncM => &RES_ENC_M,
            Self::ResEncL => &RES_ENC_L,
            Self::ResEncXl => &RES_ENC_XL,
        }
    }
}

impl Preset {
    /// Returns the first preset that uses this network.
    pub fn for_network(network: &Network) -> &'static Self {
        let mut presets = Planner::ALL.iter().map(|planner| planner.preset());
        presets.find(|preset| preset.network == network).unwrap_or(&DEFAULT)
    }

    pub fn feature_maps(&self, axes: usize) -> f64 {
        self.feature_maps[usize::from(axes == 3)]
    }
}
