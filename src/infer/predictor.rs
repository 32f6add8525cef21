//! A network ready to segment raw images.

use std::path::Path;

use ndarray::{Array4, ArrayView4, Axis};

use super::InferError;
use super::decide::Decision;
use super::export::{Export, Segmentation};
use super::options::{MemoryOptions, WindowOptions};
use super::portions::Portions;
use super::sliding_window::SlidingWindow;
use crate::dataset::{Case, DatasetJson};
use crate::image::{Resampling, resample_data};
use crate::model::{SavedModel, TensorFileError, UNet};
use crate::ops::{NnOps, Precision};
use crate::preprocess::Preprocessor;
use crate::store::{CaseProperties, PreprocessedCase};

/// A network, the preprocessing it was trained with, and the way back.
pub struct Predictor<B: NnOps> {
    network: UNet<B>,
    device: B::Device,
    dataset: DatasetJson,
    preprocessor: Preprocessor,
    window: SlidingWindow,
    memory: MemoryOptions,
    /// Of logits, to the raw image's voxels.
    resampling: Resampling,
    decision: Decision,
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
            memory: MemoryOptions::default(),
            decision: Decision::of_dataset(&description.dataset),
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

    /// The same within other bounds.
    pub fn with_memory(self, memory: MemoryOptions) -> Self {
        Self { memory, ..self }
    }

    /// The same with activations of another format.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { network: self.network.with_precision(precision), ..self }
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

    /// Segments preprocessed intensities `(channel, z, y, x)` into the raw image's geometry.
    ///
    /// Besides the image and the result, memory holds logits of about as many planes as a window has; those of the whole
    /// image only where plans ask for cubic splines to resample them, as nnU-Net's do not.
    ///
    /// # Errors
    /// The image needs more memory than it may take.
    pub fn segment(
        &self,
        image: ArrayView4<f32>,
        properties: &CaseProperties,
        with_probabilities: bool,
    ) -> Result<Segmentation, InferError> {
        let (_, z, y, x) = image.dim();
        let portions = Portions::new(&self.memory, &self.window, self.network.spec(), [z, y, x])?;
        let classes = self.network.spec().classes;
        let begin = |shape| {
            let export = Export::new(shape, properties, &self.resampling, &self.decision);
            if with_probabilities { export.with_probabilities(classes) } else { export }
        };
        let (network, device) = (&self.network, &self.device);
        if Export::can_resample(&self.resampling) {
            let mut export = begin([z, y, x]);
            let spent = self.window.run_with(network, device, image, portions, |z, plane| export.plane(z, plane));
            return Ok(export.finish(spent));
        }
        let mut logits = Array4::zeros((z, y, x, classes));
        let spent = self.window.run_with(network, device, image, portions, |z, plane| {
            logits.index_axis_mut(Axis(0), z).assign(&plane);
        });
        let logits = self.resample(logits.permuted_axes([3, 0, 1, 2]).view(), properties);
        let mut export = begin(properties.shape_after_cropping_and_before_resampling);
        for (z, plane) in logits.axis_iter(Axis(1)).enumerate() {
            export.plane(z, plane.permuted_axes([1, 2, 0]).as_standard_layout().view());
        }
        Ok(export.finish(spent))
    }

    /// Logits `(class, z, y, x)` with the raw image's voxels.
    fn resample(&self, logits: ArrayView4<f32>, properties: &CaseProperties) -> Array4<f32> {
        resample_data(
            logits,
            properties.shape_after_cropping_and_before_resampling,
            properties.spacing_after_resampling,
            properties.spacing_before_resampling(),
            &self.resampling,
        )
    }
}
