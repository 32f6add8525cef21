//! A network ready to segment raw images.

use std::path::Path;

use ndarray::ArrayView4;

use super::InferError;
use super::export::{Segmentation, to_raw};
use super::gaussian::Blend;
use super::sliding_window::SlidingWindow;
use crate::dataset::{Case, DatasetJson};
use crate::image::Resampling;
use crate::model::{SavedModel, TensorFileError, UNet};
use crate::ops::NnOps;
use crate::preprocess::Preprocessor;
use crate::store::{CaseProperties, PreprocessedCase};

/// How windows are laid and blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowOptions {
    /// Test-time augmentation: average over mirrorings.
    pub mirror: bool,
    /// Part of a window by which neighbours overlap, `0.0..1.0`.
    pub overlap: f64,
    pub blend: Blend,
}

impl Default for WindowOptions {
    /// nnU-Net's.
    fn default() -> Self {
        Self { mirror: true, overlap: 0.5, blend: Blend::Gaussian }
    }
}

/// A network, the preprocessing it was trained with, and the way back.
pub struct Predictor<B: NnOps> {
    network: UNet<B>,
    device: B::Device,
    dataset: DatasetJson,
    preprocessor: Preprocessor,
    window: SlidingWindow,
    /// Of logits, to the raw image's voxels.
    resampling: Resampling,
}

impl<B: NnOps> Predictor<B> {
    /// Reads the network of a checkpoint.
    ///
    /// # Errors
    /// The file is missing or damaged, or contradicts itself.
    pub fn open(checkpoint: &Path, options: WindowOptions, device: B::Device) -> Result<Self, InferError> {
        if !checkpoint.exists() {
            let defect = "there is no checkpoint; give --run the run directory of a training run, or a checkpoint";
            return Err(TensorFileError::new(checkpoint, defect).into());
        }
        let SavedModel { description, weights } = SavedModel::read(checkpoint)?;
        let network = UNet::with_state(description.network_spec()?, &weights, &device);
        let network = network.map_err(|cause| InferError::Weights { path: checkpoint.to_owned(), cause })?;
        Self::new(network, &description, options, device)
    }

    /// Puts everything around a network that inference needs.
    ///
    /// # Errors
    /// The plans cannot be followed.
    pub fn new(
        network: UNet<B>,
        description: &crate::model::ModelDescription,
        options: WindowOptions,
        device: B::Device,
    ) -> Result<Self, InferError> {
        let configuration = description.plans.configuration(&description.configuration)?;
        let spec = configuration.resampling_probabilities();
        Ok(Self {
            network,
            device,
            dataset: description.dataset.clone(),
            preprocessor: Preprocessor::new(&description.plans, &description.configuration, &description.dataset)?,
            window: SlidingWindow {
                window: configuration.patch_size3(),
                step: 1.0 - options.overlap,
                blend: options.blend,
                mirror_axes: if options.mirror { description.mirror_axes.clone() } else { Vec::new() },
            },
            resampling: Resampling {
                order: spec.order,
                order_z: spec.order_z,
                force_separate_z: spec.force_separate_z,
            },
        })
    }

    /// What the network was trained on.
    pub fn dataset(&self) -> &DatasetJson {
        &self.dataset
    }

    /// Does to a raw case what was done to the training cases.
    ///
    /// # Errors
    /// The case does not suit the network.
    pub fn preprocess(&self, case: &Case) -> Result<PreprocessedCase, InferError> {
        Ok(self.preprocessor.run(case)?)
    }

    /// Logits `(class, z, y, x)` of preprocessed intensities `(channel, z, y, x)`.
    pub fn logits(&self, data: ArrayView4<f32>) -> ndarray::Array4<f32> {
        self.window.logits(&self.network, data, &self.device)
    }

    /// Turns logits of a preprocessed case into labels of the raw image.
    pub fn export(
        &self,
        logits: ArrayView4<f32>,
        properties: &CaseProperties,
        with_probabilities: bool,
    ) -> Segmentation {
        to_raw(logits, properties, &self.resampling, &self.dataset, with_probabilities)
    }
}
