//! What a network was trained for.

use serde::{Deserialize, Serialize};

use super::UNetSpec;
use nnunet_data::dataset::DatasetJson;
use nnunet_data::plan::{PlanError, Plans};

/// What a network was trained for: enough to preprocess an image as its training cases were and to build the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelDescription {
    pub plans: Plans,
    pub dataset: DatasetJson,
    /// Name of the configuration in the plans.
    pub configuration: String,
    /// Spatial axes, 0 (z) to 2 (x), along which the network saw mirrored images and may be asked to at inference.
    pub mirror_axes: Vec<usize>,
}

impl ModelDescription {
    /// What the network is built from.
    ///
    /// # Errors
    /// The plans have no such configuration, or one whose network is not known.
    pub fn network_spec(&self) -> Result<UNetSpec, PlanError> {
        let configuration = self.plans.configuration(&self.configuration)?;
        Ok(UNetSpec {
            channels: configuration.num_input_channels(&self.dataset),
            classes: self.dataset.num_segmentation_heads(),
            shape: configuration.network_shape()?,
        })
    }

    /// The first thing, if any, in which a network trained as `other` says was trained for something else than this.
    /// The batch size is each run's own; a network that differs is found out by its weights.
    ///
    /// # Errors
    /// Either has plans without such a configuration.
    pub fn first_difference(&self, other: &Self) -> Result<Option<&'static str>, PlanError> {
        let ours = self.plans.configuration(&self.configuration)?;
        let theirs = other.plans.configuration(&other.configuration)?;
        let labels = |model: &Self| (model.dataset.labels.clone(), model.dataset.regions_class_order.clone());
        let comparisons = [
            ("configuration", self.configuration == other.configuration),
            ("channels", self.dataset.channel_names == other.dataset.channel_names),
            ("labels", labels(self) == labels(other)),
            ("order of axes", self.plans.transpose_forward == other.plans.transpose_forward),
            ("spacing", is_same_spacing(&ours.spacing, &theirs.spacing)),
            ("patch size", ours.patch_size == theirs.patch_size),
            ("normalisation", ours.normalization_schemes == theirs.normalization_schemes),
            ("mask for normalisation", ours.use_mask_for_norm == theirs.use_mask_for_norm),
            ("previous stage", ours.previous_stage == theirs.previous_stage),
            ("batch_dice", ours.batch_dice == theirs.batch_dice),
            ("mirrored axes", self.mirror_axes == other.mirror_axes),
        ];
        Ok(comparisons.into_iter().find_map(|(what, is_same)| (!is_same).then_some(what)))
    }
}

/// Numbers may change in their last digit on the way through a file.
fn is_same_spacing(one: &[f64], other: &[f64]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| (one - other).abs() <= 1e-9 * one.abs())
}
