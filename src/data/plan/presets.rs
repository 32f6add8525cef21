//! nnU-Net v2's planners: one algorithm with other networks and other numbers.

use super::networks::{Network, PLAIN_CONV_UNET, RESIDUAL_ENCODER_UNET};

/// nnU-Net v2's planners; each also goes by the name of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Planner {
    /// The plain U-Net, for 8 GB (ExperimentPlanner).
    #[cfg_attr(feature = "clap", value(alias = "ExperimentPlanner"))]
    Default,
    /// A residual encoder, for 8 GB (nnUNetPlannerResEncM).
    #[cfg_attr(feature = "clap", value(name = "resenc-m", alias = "nnUNetPlannerResEncM"))]
    ResEncM,
    /// A residual encoder, for 24 GB (nnUNetPlannerResEncL).
    #[cfg_attr(feature = "clap", value(name = "resenc-l", alias = "nnUNetPlannerResEncL"))]
    ResEncL,
    /// A residual encoder, for 40 GB (nnUNetPlannerResEncXL).
    #[cfg_attr(feature = "clap", value(name = "resenc-xl", alias = "nnUNetPlannerResEncXL"))]
    ResEncXl,
}

impl Planner {
    /// All planners.
    pub const ALL: [Self; 4] = [Self::Default, Self::ResEncM, Self::ResEncL, Self::ResEncXl];
}

/// What the planners differ in (nnU-Net's `default_experiment_planner.py` and `residual_encoder_unet_planners.py`).
pub(super) struct Preset {
    /// nnU-Net's class.
    pub class: &'static str,
    pub plans_name: &'static str,
    pub network: &'static Network,
    /// Memory of one GPU in GB for which it plans unless told otherwise, and to which the feature maps belong.
    pub gpu_memory_gb: f64,
    /// Elements of the feature maps of a sample that fills that GPU, in a batch of the usual size; in 2D and in 3D.
    pub feature_maps: [f64; 2],
    /// Blocks of each encoder stage; the last number goes for all further stages.
    pub blocks_encoder: &'static [usize],
    /// Convolutions of each decoder stage.
    pub convs_decoder: usize,
    /// A batch never holds more than this part of the dataset's voxels.
    pub max_part_of_dataset: f64,
    /// Whether a patch fits where the smallest batch of it does, or only where one of the usual size does.
    pub fits_with_smallest_batch: bool,
    /// The plans whose preprocessed data it shares in `2d` and `3d_fullres`, where its own name would make a copy.
    pub shares_data_of: Option<&'static str>,
}

const DEFAULT: Preset = Preset {
    class: "ExperimentPlanner",
    plans_name: "nnUNetPlans",
    network: &PLAIN_CONV_UNET,
    gpu_memory_gb: 8.0,
    feature_maps: [85e6, 560e6],
    blocks_encoder: &[2],
    convs_decoder: 2,
    max_part_of_dataset: 0.05,
    fits_with_smallest_batch: true,
    shares_data_of: None,
};

const RES_ENC_M: Preset = Preset {
    class: "nnUNetPlannerResEncM",
    plans_name: "nnUNetResEncUNetMPlans",
    network: &RESIDUAL_ENCODER_UNET,
    gpu_memory_gb: 8.0,
    feature_maps: [135e6, 680e6],
    blocks_encoder: &[1, 3, 4, 6],
    convs_decoder: 1,
    max_part_of_dataset: 1.0,
    fits_with_smallest_batch: false,
    shares_data_of: Some(DEFAULT.plans_name),
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
    /// Memory of one GPU in GB that it plans for unless told otherwise.
    pub fn gpu_memory_gb(self) -> f64 {
        self.preset().gpu_memory_gb
    }

    /// The name of its plans unless told otherwise.
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
    /// The first that plans with this network.
    pub fn of_network(network: &Network) -> &'static Self {
        let mut presets = Planner::ALL.iter().map(|planner| planner.preset());
        presets.find(|preset| preset.network == network).unwrap_or(&DEFAULT)
    }

    pub fn feature_maps(&self, axes: usize) -> f64 {
        self.feature_maps[usize::from(axes == 3)]
    }
}
