//! Ensemble of networks, such as those of the folds of a cross-validation.

use std::path::Path;

use burn::tensor::Tensor;

use super::InferError;
use nnunet_nn::checkpoint::SavedModel;
use nnunet_nn::model::{ModelDescription, TensorFileError, UNet, UNetSpec};
use nnunet_nn::ops::{NnOps, Precision};

/// Networks whose logits are averaged, as nnU-Net v2 averages those of its folds
/// (`predict_logits_from_preprocessed_data`). They differ only in their weights.
///
/// Every window passes through all networks before it is added to the sums. nnU-Net instead moves one network after the
/// other over the whole image and must keep the logits of the whole image in memory until the last network has
/// finished. Here, a plane is finished as soon as no later window covers it, independent of the number of networks. In
/// exchange, all weights are in memory at once: about 120 MB per network for nnU-Net's largest plans. Activations are
/// in memory for one network at a time.
pub struct Ensemble<B: NnOps> {
    /// At least one network.
    networks: Vec<UNet<B>>,
}

impl<B: NnOps> From<UNet<B>> for Ensemble<B> {
    fn from(network: UNet<B>) -> Self {
        Self { networks: vec![network] }
    }
}

impl<B: NnOps> Ensemble<B> {
    /// Reads the networks of checkpoints and returns them with the description of the first.
    ///
    /// # Errors
    /// Returns an error if `checkpoints` is empty, if a checkpoint is missing, damaged or inconsistent, or if the
    /// networks differ in more than their weights.
    pub fn open<P: AsRef<Path>>(checkpoints: &[P], device: &B::Device) -> Result<(Self, ModelDescription), InferError> {
        let mut opened: Option<(&Path, ModelDescription, Self)> = None;
        for path in checkpoints.iter().map(AsRef::as_ref) {
            let (network, description) = open(path, device)?;
            match &mut opened {
                None => opened = Some((path, description, network.into())),
                Some((first, expected, ensemble)) => {
                    check_compatible(first, expected, path, &description)?;
                    ensemble.networks.push(network);
                }
            }
        }
        opened.map(|(_, description, ensemble)| (ensemble, description)).ok_or(InferError::NoCheckpoint)
    }

    /// Returns the architecture that all networks share.
    pub fn spec(&self) -> &UNetSpec {
        self.networks[0].spec()
    }

    /// Sets the precision of the activations.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { networks: self.networks.into_iter().map(|network| network.with_precision(precision)).collect() }
    }

    /// Computes the mean logits `(n, z, y, x, class)` of windows `(n, z, y, x, channel)`.
    pub fn logits(&self, windows: Tensor<B, 5>) -> Tensor<B, 5> {
        let of = |network: &UNet<B>| network.forward(windows.clone(), 1).remove(0);
        let (first, others) = self.networks.split_first().expect("an ensemble has networks");
        let sum = others.iter().fold(of(first), |sum, network| sum + of(network));
        if others.is_empty() { sum } else { sum / self.networks.len() as f32 }
    }
}

fn open<B: NnOps>(path: &Path, device: &B::Device) -> Result<(UNet<B>, ModelDescription), InferError> {
    if !path.exists() {
        let defect = "no such checkpoint; pass --run the directory of a training run, or a checkpoint";
        return Err(TensorFileError::new(path, defect).into());
    }
    let SavedModel { description, weights } = SavedModel::read(path)?;
    let network = UNet::with_state(description.network_spec()?, &weights, device);
    let network = network.map_err(|cause| InferError::Weights { path: path.to_owned(), cause })?;
    Ok((network, description))
}

/// Checks that two networks take the same input and predict the same classes.
fn check_compatible(
    first: &Path,
    expected: &ModelDescription,
    path: &Path,
    found: &ModelDescription,
) -> Result<(), InferError> {
    let intensities = |model: &ModelDescription| model.plans.foreground_intensity_properties_per_channel.clone();
    let different = if expected.plans.dataset_name != found.plans.dataset_name {
        Some("dataset")
    } else if let Some(what) = expected.first_difference(found)? {
        Some(what)
    } else if expected.network_spec()? != found.network_spec()? {
        Some("architecture")
    } else {
        (intensities(expected) != intensities(found)).then_some("intensity statistics for normalization")
    };
    match different {
        None => Ok(()),
        Some(what) => Err(InferError::Ensemble { first: first.to_owned(), path: path.to_owned(), what }),
    }
}
