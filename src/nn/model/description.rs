//! Description of a trained model.

use serde::{Deserialize, Serialize};

use super::UNetSpec;
use nnunet_data::dataset::DatasetJson;
use nnunet_data::plan::{PlanError, Plans};

/// Plans, dataset and configuration of a model: enough to preprocess an image like the training cases and to build the
/// network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelDescription {
    pub plans: Plans,
    pub dataset: DatasetJson,
    /// Name of the configuration in the plans.
    pub configuration: String,
    /// Spatial axes, 0 (z) to 2 (x), along which training mirrored the images; used for test-time mirroring.
    pub mirror_axes: Vec<usize>,
}

impl ModelDescription {
    /// Returns the network's architecture.
    ///
    /// # Errors
    /// Returns an error if the plans lack the configuration or its network is not supported.
    pub fn network_spec(&self) -> Result<UNetSpec, PlanError> {
        let configuration = self.plans.configuration(&self.configuration)?;
        Ok(UNetSpec {
            channels: configuration.num_input_channels(&self.dataset),
            classes: self.dataset.num_segmentation_heads(),
            shape: configuration.network_shape()?,
        })
    }

    /// Returns the name of the first property in which the two models differ, or `None` if they are compatible. The
    /// batch size is not compared, since each run chooses its own. The network is not compared, since loading its
    /// weights checks it.
    ///
    /// # Errors
    /// Returns an error if the plans of either model lack its configuration.
    pub fn first_difference(&self, other: &Self) -> Result<Option<&'static str>, PlanError> {
        let ours = self.plans.configuration(&self.configuration)?;
        let theirs = other.plans.configuration(&other.configuration)?;
        let labels = |model: &Self| (model.dataset.labels.clone(), model.dataset.regions_class_order.clone());
        let comparisons = [
            ("configuration", self.configuration == other.configuration),
            ("channels", self.dataset.channel_names == other.dataset.channel_names),
            ("labels", labels(self) == labels(other)),
            ("axis order", self.plans.transpose_forward == other.plans.transpose_forward),
            ("spacing", is_same_spacing(&ours.spacing, &theirs.spacing)),
            ("patch size", ours.patch_size == theirs.patch_size),
            ("normalization", ours.normalization_schemes == theirs.normalization_schemes),
            ("normalization mask", ours.use_mask_for_norm == theirs.use_mask_for_norm),
            ("previous stage", ours.previous_stage == theirs.previous_stage),
            ("batch_dice", ours.batch_dice == theirs.batch_dice),
            ("mirrored axes", self.mirror_axes == other.mirror_axes),
        ];
        Ok(comparisons.into_iter().find_map(|(what, is_same)| (!is_same).then_some(what)))
    }
}

/// Compares with a tolerance, since the last digit may change when written to a file.
fn is_same_spacing(one: &[f64], other: &[f64]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| (one - other).abs() <= 1e-9 * one.abs())
}
