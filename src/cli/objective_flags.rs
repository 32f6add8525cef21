//! What a training is told to optimise, and how, on the command line.

use clap::Args;

use super::name_of;
use nnunet_data::augment::AugmentationPreset;
use nnunet_data::loader::Oversampling;
use nnunet_nn::optim::ScheduleKind;
use nnunet_train::config::{Layer, LossKind, OptimizerKind};

/// Loss, optimiser and augmentation.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is optimised, and how")]
pub struct ObjectiveFlags {
    /// Loss [default: dice_ce].
    #[arg(long, value_enum, value_name = "KIND")]
    loss: Option<LossKind>,

    /// Dice over the whole batch (true) or per sample [default: the plans'].
    #[arg(long, value_name = "BOOL")]
    batch_dice: Option<bool>,

    /// Give the background a part in the Dice and in the focal loss.
    #[arg(long)]
    include_background: bool,

    /// Optimiser [default: sgd].
    #[arg(long, value_enum, value_name = "KIND")]
    optimizer: Option<OptimizerKind>,

    /// Let slow weights follow the optimiser's (Zhang et al. 2019).
    #[arg(long)]
    lookahead: bool,

    /// Initial learning rate [default: 0.01 for sgd, 0.0003 for others].
    #[arg(long, value_name = "X", value_parser = super::positive)]
    lr: Option<f64>,

    /// How the learning rate falls [default: poly].
    #[arg(long, value_enum, value_name = "KIND")]
    scheduler: Option<ScheduleKind>,

    /// Steps in which the learning rate rises before it falls [default: 0].
    #[arg(long, value_name = "N")]
    warmup_steps: Option<u32>,

    /// Transforms of training patches [default: nnunet].
    #[arg(long, value_enum, value_name = "PRESET")]
    augment: Option<AugmentationPreset>,

    /// Which samples are centred on foreground: the last of each batch, or each by chance [default: deterministic].
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
