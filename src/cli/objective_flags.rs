//! Command-line flags of loss, optimizer and augmentation.

use clap::Args;

use super::name_of;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::loader::Oversampling;
use nnunet_nn::optim::ScheduleKind;
use nnunet_train::config::{Layer, LossKind, OptimizerKind};

/// Loss, optimizer and augmentation.
#[derive(Debug, Args)]
#[command(next_help_heading = "Optimization")]
pub struct ObjectiveFlags {
    /// Loss function [default: dice_ce].
    #[arg(long, value_enum, value_name = "KIND")]
    loss: Option<LossKind>,

    /// Compute the Dice loss over the whole batch (true) or per sample (false) [default: the plans'].
    #[arg(long, value_name = "BOOL")]
    batch_dice: Option<bool>,

    /// Include the background in the Dice and focal losses.
    #[arg(long)]
    include_background: bool,

    /// Optimizer [default: sgd].
    #[arg(long, value_enum, value_name = "KIND")]
    optimizer: Option<OptimizerKind>,

    /// Wrap the optimizer in Lookahead with slow weights (Zhang et al. 2019).
    #[arg(long)]
    lookahead: bool,

    /// Initial learning rate [default: 0.01 for sgd, 0.0003 for others].
    #[arg(long, value_name = "X", value_parser = super::positive)]
    lr: Option<f64>,

    /// Learning rate schedule [default: poly].
    #[arg(long, value_enum, value_name = "KIND")]
    scheduler: Option<ScheduleKind>,

    /// Warm-up steps in which the learning rate increases [default: 0].
    #[arg(long, value_name = "N")]
    warmup_steps: Option<u32>,

    /// Augmentation preset for training patches [default: nnunet].
    #[arg(long, value_enum, value_name = "PRESET")]
    augment: Option<AugmentationPreset>,

    /// Samples to center on foreground: the last ones of each batch, or each at random [default: deterministic].
    #[arg(long, value_enum, value_name = "HOW")]
    oversampling: Option<Oversampling>,
}

impl ObjectiveFlags {
    pub(super) fn add_to(&self, layer: &mut Layer) {
        layer
            .set("loss.kind", name_of(self.loss))
            .set("loss.batch_dice", self.batch_dice)
            .set("loss.include_background", self.include_background.then_some(true))
            .set("optimizer.kind", name_of(self.optimizer))
            .set("optimizer.lookahead", self.lookahead.then_some(true))
            .set("optimizer.lr", self.lr)
            .set("schedule.kind", name_of(self.scheduler))
            .set("schedule.warmup_steps", self.warmup_steps)
            .set("data.augmentation", name_of(self.augment))
            .set("data.oversampling", name_of(self.oversampling));
    }
}
