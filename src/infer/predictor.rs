//! Networks ready to segment raw images.

use std::path::Path;

use ndarray::{Array4, ArrayView3, ArrayView4, Axis};

use super::InferError;
use super::cascade::{FromPreviousStage, NextStage, add_label_maps};
use super::decide::Decision;
use super::export::{Export, Segmentation};
use super::networks::Ensemble;
use super::options::{MemoryOptions, PredictOptions, WindowOptions};
use super::portions::Portions;
use super::sliding_window::SlidingWindow;
use nnunet_data::dataset::{Case, CaseFiles, DatasetJson};
use nnunet_data::preprocess::Preprocessor;
use nnunet_data::store::{CaseProperties, PreprocessedCase};
use nnunet_image::{Geometry, Resampling, Volume, resample_data};
use nnunet_nn::model::{ModelDescription, UNet};
use nnunet_nn::ops::{NnOps, Precision};

/// A network, or several that answer as one, with the preprocessing they were trained with, and the way back.
pub struct Predictor<B: NnOps> {
    networks: Ensemble<B>,
    device: B::Device,
    model: ModelDescription,
    preprocessor: Preprocessor,
    window: SlidingWindow,
    memory: MemoryOptions,
    /// Of logits, to the raw image's voxels.
    resampling: Resampling,
    decision: Decision,
    /// What the network is given of a cascade's previous stage.
    previous_stage: Option<FromPreviousStage>,
    next_stages: Vec<NextStage>,
}

impl<B: NnOps> Predictor<B> {
    /// Reads the networks of checkpoints; the logits of several are averaged.
    ///
    /// # Errors
    /// There is no checkpoint, one is missing or damaged or contradicts itself, or they were trained for different things.
    pub fn open<P: AsRef<Path>>(
        checkpoints: &[P],
        options: WindowOptions,
        device: B::Device,
    ) -> Result<Self, InferError> {
        let (networks, model) = Ensemble::open(checkpoints, &device)?;
        Self::around(networks, &model, options, device)
    }

    /// Reads the networks that `options` names, to be asked as they say.
    ///
    /// # Errors
    /// As those of [`Predictor::open`].
    pub fn with_options(options: &PredictOptions, device: B::Device) -> Result<Self, InferError> {
        let predictor = Self::open(&options.checkpoints, options.windows, device)?;
        Ok(predictor.with_memory(options.memory).with_precision(options.precision))
    }

    /// Puts everything around a network that inference needs.
    ///
    /// # Errors
    /// The plans cannot be followed.
    pub fn new(
        network: UNet<B>,
        description: &ModelDescription,
        options: WindowOptions,
        device: B::Device,
    ) -> Result<Self, InferError> {
        Self::around(network.into(), description, options, device)
    }

    fn around(
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
            decision: Decision::of_dataset(&description.dataset),
            previous_stage: FromPreviousStage::of(&configuration, &description.dataset),
            next_stages: Vec::new(),
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

    /// The same within other bounds.
    pub fn with_memory(self, memory: MemoryOptions) -> Self {
        Self { memory, ..self }
    }

    /// The same with activations of another format.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { networks: self.networks.with_precision(precision), ..self }
    }

    /// The same, with segmentations for these later stages of a cascade made beside those of the raw image.
    pub fn with_next_stages(self, next_stages: Vec<NextStage>) -> Self {
        Self { next_stages, ..self }
    }

    /// The stages that [`Segmentation::for_next_stages`] is for, in its order.
    pub fn next_stages(&self) -> &[NextStage] {
        &self.next_stages
    }

    /// Whether the networks can do with the image alone.
    ///
    /// # Errors
    /// They cannot; the error names the stage whose segmentations they need.
    pub(crate) fn check_previous_stage(&self) -> Result<(), InferError> {
        self.previous_stage.as_ref().map_or(Ok(()), |stage| Err(stage.is_missing()))
    }

    /// Gives each case the label map that the previous stage of a cascade has left of it in `folder`.
    ///
    /// # Errors
    /// The networks take none, need some, or some are missing.
    pub fn add_previous_stage(&self, cases: &mut [CaseFiles], folder: Option<&Path>) -> Result<(), InferError> {
        match (folder, &self.previous_stage) {
            (None, _) => self.check_previous_stage(),
            (Some(_), None) => Err(InferError::NotCascaded { configuration: self.model.configuration.clone() }),
            (Some(folder), Some(_)) => add_label_maps(cases, folder, &self.dataset().file_ending),
        }
    }

    /// What the networks were trained for.
    pub fn model(&self) -> &ModelDescription {
        &self.model
    }

    /// What the networks were trained on.
    pub fn dataset(&self) -> &DatasetJson {
        &self.model.dataset
    }

    /// Segments an image in memory: raw intensities `(channel, z, y, x)`, voxels of `spacing` `(z, y, x)` in mm. Labels,
    /// and probabilities `(class, z, y, x)` if asked for, have the image's extent.
    ///
    /// # Errors
    /// The image is empty, not finite or has other channels than the networks were trained with, or needs more memory than
    /// it may take.
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
            return Err(InferError::Array(format!("has voxels of {spacing:?} mm, which is no size")));
        }
        if let Some(count) = not_finite(image) {
            return Err(InferError::Array(format!("is NaN or infinite in {count} voxels")));
        }
        let volume = Volume { data: image.to_owned(), geometry: Geometry { spacing, ..Geometry::default() } };
        let case = self.preprocess(&Case { id: "image".into(), image: volume, label: None })?;
        self.segment(case.data.view(), &case.properties, with_probabilities)
    }

    /// What is done to an image before the networks see it.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Does to a raw case what was done to the training cases. In the second stage of a cascade the case's label map is the
    /// first stage's segmentation, of the raw image's voxels, and goes with the image.
    ///
    /// # Errors
    /// The case does not suit the network, or lacks that segmentation.
    pub fn preprocess(&self, case: &Case) -> Result<PreprocessedCase, InferError> {
        let mut preprocessed = self.preprocessor.run(case)?;
        let previous = preprocessed.labels.take();
        let data = self.input(preprocessed.data, previous.as_ref().map(|labels| labels.view()))?;
        Ok(PreprocessedCase { data, labels: previous, ..preprocessed })
    }

    /// The network's input: preprocessed intensities, `(channel, z, y, x)`, and in the second stage of a cascade the first
    /// one's segmentation of the same voxels.
    ///
    /// # Errors
    /// A cascade lacks it.
    pub fn input(&self, image: Array4<f32>, previous: Option<ArrayView3<i16>>) -> Result<Array4<f32>, InferError> {
        match &self.previous_stage {
            Some(stage) => stage.add_to(image, previous),
            None => Ok(image),
        }
    }

    /// Segments a preprocessed case `(channel, z, y, x)`, as [`Predictor::input`] gives it, into the raw image's geometry.
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
        let portions = Portions::new(&self.memory, &self.window, self.networks.spec(), [z, y, x])?;
        let classes = self.networks.spec().classes;
        let begin = |shape| {
            let export = Export::new(shape, properties, &self.resampling, &self.decision);
            if with_probabilities { export.with_probabilities(classes) } else { export }
        };
        let (networks, device) = (&self.networks, &self.device);
        let targets: Vec<_> = self.next_stages.iter().map(|stage| stage.shape(properties)).collect();
        let for_stage = |from, to| Export::for_stage([from, to], properties, &self.resampling, &self.decision);
        if Export::can_resample(&self.resampling) {
            let mut export = begin([z, y, x]);
            let mut others: Vec<_> = targets.iter().map(|to| for_stage([z, y, x], *to)).collect();
            let spent = self.window.run_with(networks, device, image, portions, |z, plane| {
                others.iter_mut().for_each(|export| export.plane(z, plane));
                export.plane(z, plane);
            });
            let for_next_stages = others.into_iter().map(Export::into_labels).collect();
            return Ok(Segmentation { for_next_stages, ..export.finish(spent) });
        }
        let mut logits = Array4::zeros((z, y, x, classes));
        let spent = self.window.run_with(networks, device, image, portions, |z, plane| {
            logits.index_axis_mut(Axis(0), z).assign(&plane);
        });
        let logits = logits.permuted_axes([3, 0, 1, 2]);
        let from = properties.spacing_after_resampling;
        let resampled = |shape, spacing| resample_data(logits.view(), shape, from, spacing, &self.resampling);
        let shape = properties.shape_after_cropping_and_before_resampling;
        let export = exported(&resampled(shape, properties.spacing_before_resampling()), begin(shape));
        let others = targets.iter().map(|to| exported(&resampled(*to, from), for_stage(*to, *to)).into_labels());
        Ok(Segmentation { for_next_stages: others.collect(), ..export.finish(spent) })
    }
}

/// In how many voxels an image is NaN or infinite, if in any: one would make background of all that surrounds it.
pub(super) fn not_finite(image: ArrayView4<f32>) -> Option<usize> {
    let count = image.iter().filter(|intensity| !intensity.is_finite()).count();
    (count > 0).then_some(count)
}

/// Hands logits `(class, z, y, x)` that have their final voxels to an export.
fn exported<'e>(logits: &Array4<f32>, mut export: Export<'e>) -> Export<'e> {
    for (z, plane) in logits.axis_iter(Axis(1)).enumerate() {
        export.plane(z, plane.permuted_axes([1, 2, 0]).as_standard_layout().view());
    }
    export
}
