//! Prediction of raw images with one or several networks.

use std::path::Path;

use ndarray::{Array4, ArrayView3, ArrayView4, Axis};

use super::InferError;
use super::argmax::LabelRule;
use super::export::{Export, Segmentation};
use super::networks::Ensemble;
use super::options::{Batching, MemoryOptions, PredictOptions, WindowOptions};
use super::previous_stage::{NextStage, PreviousStageInput, add_label_maps};
use super::sliding_window::SlidingWindow;
use nnunet_core::memory;
use nnunet_data::dataset::{Case, CaseFiles, DatasetJson};
use nnunet_data::plan::TrainingImages;
use nnunet_data::preprocess::Preprocessor;
use nnunet_data::store::{CaseProperties, PreprocessedCase};
use nnunet_image::{Geometry, Resampling, Volume, resample_data};
use nnunet_nn::model::{ModelDescription, UNet};
use nnunet_nn::ops::{NnOps, Precision};

/// Network or ensemble of networks, with the preprocessing of its training and the export to the raw image's geometry.
pub struct Predictor<B: NnOps> {
    networks: Ensemble<B>,
    device: B::Device,
    model: ModelDescription,
    preprocessor: Preprocessor,
    window: SlidingWindow,
    memory: MemoryOptions,
    /// Resampling of logits to the raw image's voxel grid.
    resampling: Resampling,
    label_rule: LabelRule,
    /// Input channels from a cascade's previous stage.
    previous_stage: Option<PreviousStageInput>,
    next_stages: Vec<NextStage>,
    /// Geometries of the training images, if the plans state them.
    training_images: Option<TrainingImages>,
}

impl<B: NnOps> Predictor<B> {
    /// Reads the networks of checkpoints; the logits of several are averaged.
    ///
    /// # Errors
    /// Returns an error if `checkpoints` is empty, if a checkpoint is missing, damaged or inconsistent, or if the
    /// networks differ in more than their weights.
    pub fn open<P: AsRef<Path>>(
        checkpoints: &[P],
        options: WindowOptions,
        device: B::Device,
    ) -> Result<Self, InferError> {
        let (networks, model) = Ensemble::open(checkpoints, &device)?;
        Self::with_networks(networks, &model, options, device)
    }

    /// Reads the networks that `options` name and applies the options.
    ///
    /// # Errors
    /// Like [`Predictor::open`].
    pub fn with_options(options: &PredictOptions, device: B::Device) -> Result<Self, InferError> {
        let predictor = Self::open(&options.checkpoints, options.windows, device)?;
        Ok(predictor.with_memory(options.memory).with_precision(options.precision))
    }

    /// Creates a predictor from a network in memory.
    ///
    /// # Errors
    /// Returns an error if the plans are not supported.
    pub fn new(
        network: UNet<B>,
        description: &ModelDescription,
        options: WindowOptions,
        device: B::Device,
    ) -> Result<Self, InferError> {
        Self::with_networks(network.into(), description, options, device)
    }

    fn with_networks(
        networks: Ensemble<B>,
        description: &ModelDescription,
        options: WindowOptions,
        device: B::Device,
    ) -> Result<Self, InferError> {
        let configuration = description.plans.configuration(&description.configuration)?;
        let spec = configuration.resampling_probabilities();
        Ok(Self {
            networks,
            device,
            memory: MemoryOptions::default(),
            label_rule: LabelRule::for_dataset(&description.dataset),
            previous_stage: PreviousStageInput::from_configuration(&configuration, &description.dataset),
            next_stages: Vec::new(),
            training_images: TrainingImages::from_plans(&description.plans),
            model: description.clone(),
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

    /// Sets the memory options.
    pub fn with_memory(self, memory: MemoryOptions) -> Self {
        Self { memory, ..self }
    }

    /// Sets the precision of the activations.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { networks: self.networks.with_precision(precision), ..self }
    }

    /// Additionally produces segmentations for these later stages of a cascade.
    pub fn with_next_stages(self, next_stages: Vec<NextStage>) -> Self {
        Self { next_stages, ..self }
    }

    /// Returns the stages of [`Segmentation::for_next_stages`], in its order.
    pub fn next_stages(&self) -> &[NextStage] {
        &self.next_stages
    }

    /// Checks that the networks need no segmentation of a previous stage.
    ///
    /// # Errors
    /// Returns an error that names the required stage.
    pub(crate) fn check_previous_stage(&self) -> Result<(), InferError> {
        self.previous_stage.as_ref().map_or(Ok(()), |stage| Err(stage.missing_error()))
    }

    /// Assigns to each case its label map of the cascade's previous stage in `folder`.
    ///
    /// # Errors
    /// Returns an error if the networks take no such label maps, if they need them and `folder` is `None`, or if some
    /// are missing.
    pub fn add_previous_stage(&self, cases: &mut [CaseFiles], folder: Option<&Path>) -> Result<(), InferError> {
        match (folder, &self.previous_stage) {
            (None, _) => self.check_previous_stage(),
            (Some(_), None) => Err(InferError::NotCascaded { configuration: self.model.configuration.clone() }),
            (Some(folder), Some(_)) => add_label_maps(cases, folder, &self.dataset().file_ending),
        }
    }

    /// Returns the description of the networks: plans, dataset and configuration.
    pub fn model(&self) -> &ModelDescription {
        &self.model
    }

    /// Returns the description of the training dataset.
    pub fn dataset(&self) -> &DatasetJson {
        &self.model.dataset
    }

    /// Segments an image in memory: raw intensities `(channel, z, y, x)` with voxels of `spacing` `(z, y, x)` in mm.
    /// Labels and, if requested, probabilities `(class, z, y, x)` have the image's shape.
    ///
    /// # Errors
    /// Returns an error if the image is empty, not finite, has another number of channels than the networks, or exceeds
    /// the memory limit.
    pub fn predict_array(
        &self,
        image: ArrayView4<f32>,
        spacing: [f64; 3],
        with_probabilities: bool,
    ) -> Result<Segmentation, InferError> {
        if image.is_empty() {
            return Err(InferError::Array(format!("of shape {:?} has no voxels", image.shape())));
        }
        if !spacing.iter().all(|mm| mm.is_finite() && *mm > 0.0) {
            return Err(InferError::Array(format!("has an invalid spacing of {spacing:?} mm")));
        }
        if let Some(count) = count_non_finite(image) {
            return Err(InferError::Array(format!("is NaN or infinite in {count} voxels")));
        }
        let volume = Volume { data: image.to_owned(), geometry: Geometry { spacing, ..Geometry::default() } };
        // An array has no orientation.
        let case = self.preprocess_quietly(&Case { id: "image".into(), image: volume, label: None })?;
        self.segment(case.data.view(), &case.properties, with_probabilities)
    }

    /// Returns the preprocessing of the networks' input.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Preprocesses a raw case like the training cases. In the second stage of a cascade, the case's label map is the
    /// first stage's segmentation in the raw image's voxel grid and becomes part of the input.
    ///
    /// # Errors
    /// Returns an error if the case does not match the network or lacks that segmentation.
    pub fn preprocess(&self, case: &Case) -> Result<PreprocessedCase, InferError> {
        self.warn_if_outlier(case);
        self.preprocess_quietly(case)
    }

    fn preprocess_quietly(&self, case: &Case) -> Result<PreprocessedCase, InferError> {
        let prepared = self.preprocessor.prepare(case)?;
        // One case is read while another is predicted.
        memory::check_fits(prepared.memory_bound().saturating_mul(2)).map_err(|excess| InferError::TooLarge {
            what: format!(
                "two images of {:?} voxels (z, y, x) at the target spacing, as are in memory at a time,",
                prepared.shape_after_resampling()
            ),
            excess: format!("{excess}; check the spacing of the image"),
        })?;
        let mut preprocessed = self.preprocessor.resample_and_locate(prepared);
        let previous = preprocessed.labels.take();
        let data = self.input(preprocessed.data, previous.as_ref().map(|labels| labels.view()))?;
        Ok(PreprocessedCase { data, labels: previous, ..preprocessed })
    }

    /// Builds the network's input from preprocessed intensities `(channel, z, y, x)` and, in the second stage of a
    /// cascade, the first stage's segmentation in the same voxel grid.
    ///
    /// # Errors
    /// Returns an error if the segmentation is required but missing.
    pub fn input(&self, image: Array4<f32>, previous: Option<ArrayView3<i16>>) -> Result<Array4<f32>, InferError> {
        match &self.previous_stage {
            Some(stage) => stage.append_channels(image, previous),
            None => Ok(image),
        }
    }

    /// Segments a preprocessed case `(channel, z, y, x)`, as returned by [`Predictor::input`], in the raw image's
    /// geometry.
    ///
    /// Besides the image and the result, memory holds logits for about as many planes as a window has. Logits of the
    /// whole image are kept only if the plans require cubic splines to resample them, which nnU-Net's do not.
    ///
    /// # Errors
    /// Returns an error if the image exceeds the memory limit.
    pub fn segment(
        &self,
        image: ArrayView4<f32>,
        properties: &CaseProperties,
        with_probabilities: bool,
    ) -> Result<Segmentation, InferError> {
        let (_, z, y, x) = image.dim();
        let batching = Batching::new(&self.memory, &self.window, self.networks.spec(), [z, y, x])?;
        let classes = self.networks.spec().classes;
        self.check_results_size(properties, with_probabilities)?;
        let begin = |shape| {
            let export = Export::new(shape, properties, &self.resampling, &self.label_rule);
            if with_probabilities { export.with_probabilities(classes) } else { export }
        };
        let (networks, device) = (&self.networks, &self.device);
        let targets: Vec<_> = self.next_stages.iter().map(|stage| stage.shape(properties)).collect();
        let for_stage = |from, to| Export::for_stage([from, to], properties, &self.resampling, &self.label_rule);
        if Export::can_resample(&self.resampling) {
            let mut export = begin([z, y, x]);
            let mut others: Vec<_> = targets.iter().map(|to| for_stage([z, y, x], *to)).collect();
            let timings = self.window.run_with(networks, device, image, batching, |z, plane| {
                others.iter_mut().for_each(|export| export.plane(z, plane));
                export.plane(z, plane);
            });
            let for_next_stages = others.into_iter().map(Export::into_labels).collect();
            return Ok(Segmentation { for_next_stages, ..export.finish(timings) });
        }
        let mut logits = Array4::zeros((z, y, x, classes));
        let timings = self.window.run_with(networks, device, image, batching, |z, plane| {
            logits.index_axis_mut(Axis(0), z).assign(&plane);
        });
        let logits = logits.permuted_axes([3, 0, 1, 2]);
        let from = properties.spacing_after_resampling;
        let resampled = |shape, spacing| resample_data(logits.view(), shape, from, spacing, &self.resampling);
        let shape = properties.shape_after_cropping_and_before_resampling;
        let export = export_logits(&resampled(shape, properties.spacing_before_resampling()), begin(shape));
        let others = targets.iter().map(|to| export_logits(&resampled(*to, from), for_stage(*to, *to)).into_labels());
        Ok(Segmentation { for_next_stages: others.collect(), ..export.finish(timings) })
    }
}

impl<B: NnOps> Predictor<B> {
    /// Checks, before anything is allocated, that the results of an image fit into the memory of the machine:
    /// probabilities of all classes, and logits of the whole image if cubic splines resample them.
    fn check_results_size(&self, properties: &CaseProperties, with_probabilities: bool) -> Result<(), InferError> {
        let classes = self.networks.spec().classes;
        let bytes = |shape: [usize; 3]| memory::byte_product([classes, size_of::<f32>()].into_iter().chain(shape));
        let raw = properties.raw_shape();
        let probabilities = if with_probabilities { bytes(raw).saturating_mul(2) } else { 0 };
        let logits = match Export::can_resample(&self.resampling) {
            true => 0,
            false => bytes(properties.shape_after_resampling).saturating_add(bytes(raw)),
        };
        memory::check_fits(probabilities.saturating_add(logits)).map_err(|excess| InferError::TooLarge {
            what: format!("the results of {classes} classes for {raw:?} voxels (z, y, x)"),
            excess,
        })
    }

    /// Warns if the image is far outside of the training images. Without segmentations of a previous stage only, so that
    /// a cascade warns once.
    fn warn_if_outlier(&self, case: &Case) {
        let outlier = self.training_images.as_ref().and_then(|range| range.describe_outlier(&case.image.geometry));
        if let (Some(outlier), None) = (outlier, &self.previous_stage) {
            tracing::warn!("case {}: {outlier}; check its axes and units", case.id);
        }
    }
}

/// Returns the number of NaN or infinite voxels if there are any: one would turn its surroundings into background.
pub(super) fn count_non_finite(image: ArrayView4<f32>) -> Option<usize> {
    let count = image.iter().filter(|intensity| !intensity.is_finite()).count();
    (count > 0).then_some(count)
}

/// Exports logits `(class, z, y, x)` that already have their final voxel grid.
fn export_logits<'e>(logits: &Array4<f32>, mut export: Export<'e>) -> Export<'e> {
    for (z, plane) in logits.axis_iter(Axis(1)).enumerate() {
        export.plane(z, plane.permuted_axes([1, 2, 0]).as_standard_layout().view());
    }
    export
}
