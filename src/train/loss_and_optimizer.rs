//! Creation of the loss and the optimizer from configuration and dataset.

use super::TrainError;
use crate::config::{LossConfig, LossKind, OptimizerConfig, OptimizerKind};
use nnunet_data::dataset::DatasetJson;
use nnunet_data::work::ConfigError;
use nnunet_nn::loss::{SegmentationLoss, Target, VoxelLoss};
use nnunet_nn::ops::NnOps;
use nnunet_nn::optim::{Adam, Optimizer, Rule, Sgd};

/// Creates the loss for a dataset's classes or regions.
///
/// # Errors
/// Returns an error if the configuration is not supported for regions, or `class_weights` has the wrong length.
pub fn build_loss(config: &LossConfig, dataset: &DatasetJson) -> Result<SegmentationLoss, TrainError> {
    let misfit = |defect: String| Err(ConfigError::new("configuration", defect).into());
    let regions = dataset.regions();
    let classes = dataset.num_segmentation_heads();
    if regions.is_some() && config.kind == LossKind::DiceTopk {
        return misfit("`loss.kind` dice_topk supports only classes, but the dataset has regions".into());
    }
    match (config.class_weights.len(), &regions) {
        (0, _) => {}
        (_, Some(_)) => return misfit("`loss.class_weights` requires classes, but the dataset has regions".into()),
        (weights, None) if weights != classes => {
            let defect = format!("`loss.class_weights` has {weights} entries, expected {classes}: one per class");
            return misfit(defect + ", with the background first");
        }
        (_, None) => {}
    }
    let target = regions.map_or(Target::Classes, Target::Regions);
    let voxels = match config.kind {
        LossKind::DiceCe | LossKind::Ce => VoxelLoss::CrossEntropy,
        LossKind::DiceTopk => VoxelLoss::TopK { percent: config.topk_percent },
        LossKind::DiceFocal => VoxelLoss::Focal { gamma: config.focal_gamma as f32 },
        LossKind::Dice => VoxelLoss::None,
    };
    Ok(SegmentationLoss {
        dice: config.kind != LossKind::Ce,
        voxels,
        include_background: config.include_background,
        class_weights: config.class_weights.iter().map(|weight| *weight as f32).collect(),
        ..SegmentationLoss::new(target, config.batch_dice, dataset.ignore_label())
    })
}

/// Creates the optimizer in its initial state.
pub fn build_optimizer<B: NnOps>(config: &OptimizerConfig) -> Optimizer<B> {
    let optimizer = Optimizer::new(rule(config), (config.max_grad_norm > 0.0).then_some(config.max_grad_norm));
    if config.lookahead { optimizer.with_lookahead() } else { optimizer }
}

fn rule(config: &OptimizerConfig) -> Rule {
    let OptimizerConfig { weight_decay, momentum, nesterov, .. } = *config;
    let adam = Adam { weight_decay, ..Adam::default() };
    match config.kind {
        OptimizerKind::Sgd => Sgd { momentum, weight_decay, nesterov }.into(),
        OptimizerKind::Adam => adam.into(),
        OptimizerKind::Adamw => Adam { decoupled: true, ..adam }.into(),
        OptimizerKind::Radam => Adam { rectified: true, ..adam }.into(),
    }
}
