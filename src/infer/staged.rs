//! Prediction of single images, with both stages in case of a cascade.

use std::path::PathBuf;

use super::InferError;
use super::export::Segmentation;
use super::options::PredictOptions;
use super::predictor::Predictor;
use super::stages::check_order;
use nnunet_data::dataset::Case;
use nnunet_data::preprocess::Preprocessor;
use nnunet_data::store::{CaseProperties, PreprocessedCase};
use nnunet_nn::ops::NnOps;

/// [`Predictor`], preceded by the first stage's predictor in a cascade.
pub struct StagedPredictor<B: NnOps> {
    first: Option<Predictor<B>>,
    last: Predictor<B>,
}

/// Preprocessed image that can be segmented without reading it again.
pub struct PreparedImage {
    /// Input of the first networks.
    case: PreprocessedCase,
    /// Raw image for the second stage of a cascade.
    raw: Option<Case>,
}

impl PreparedImage {
    /// Returns the properties of the image, such as shape and spacing.
    pub fn properties(&self) -> &CaseProperties {
        &self.case.properties
    }
}

impl<B: NnOps> StagedPredictor<B> {
    /// Reads the networks that `options` name and, for the second stage of a cascade, the networks of the checkpoints
    /// `first`.
    ///
    /// # Errors
    /// Returns an error if a checkpoint is missing or damaged, if the networks need a first stage and `first` is empty,
    /// or if `first` is not that stage.
    pub fn open(first: &[PathBuf], options: &PredictOptions, device: B::Device) -> Result<Self, InferError> {
        let last = Predictor::with_options(options, device.clone())?;
        let Some(path) = first.first() else {
            last.check_previous_stage()?;
            return Ok(Self { first: None, last });
        };
        let options = PredictOptions { checkpoints: first.to_vec(), ..options.clone() };
        let first = Predictor::with_options(&options, device)?;
        check_order(path, first.model(), last.model())?;
        Ok(Self { first: Some(first), last })
    }

    /// Returns the networks that produce the final segmentation.
    pub fn last(&self) -> &Predictor<B> {
        &self.last
    }

    /// Returns the preprocessing of each stage.
    pub fn preprocessors(&self) -> Vec<Preprocessor> {
        let stages = self.first.iter().chain([&self.last]);
        stages.map(|stage| stage.preprocessor().clone()).collect()
    }

    /// Preprocesses the image for the first networks.
    ///
    /// # Errors
    /// Returns an error if the image does not match them.
    pub fn prepare(&self, case: Case) -> Result<PreparedImage, InferError> {
        match &self.first {
            None => Ok(PreparedImage { case: self.last.preprocess(&case)?, raw: None }),
            Some(first) => Ok(PreparedImage { case: first.preprocess(&case)?, raw: Some(case) }),
        }
    }

    /// Segments the image in its own geometry. In a cascade, the first stage's segmentation is part of the second
    /// stage's input.
    ///
    /// # Errors
    /// Returns an error if the image exceeds the memory limit.
    pub fn segment(&self, image: PreparedImage, with_probabilities: bool) -> Result<Segmentation, InferError> {
        let PreparedImage { mut case, raw } = image;
        if let (Some(first), Some(raw)) = (&self.first, raw) {
            let found = first.segment(case.data.view(), &case.properties, false)?;
            case = self.last.preprocess(&Case { label: Some(found.labels), ..raw })?;
        }
        self.last.segment(case.data.view(), &case.properties, with_probabilities)
    }
}
