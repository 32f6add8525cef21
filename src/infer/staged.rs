//! Networks that segment images one by one: with a cascade both of its stages.

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

/// A [`Predictor`], and in a cascade that of the first stage before it.
pub struct StagedPredictor<B: NnOps> {
    first: Option<Predictor<B>>,
    last: Predictor<B>,
}

/// An image that can be segmented without being read again.
pub struct PreparedImage {
    /// For the first networks.
    case: PreprocessedCase,
    /// For the second stage of a cascade.
    raw: Option<Case>,
}

impl PreparedImage {
    /// Extents and voxels of the image.
    pub fn properties(&self) -> &CaseProperties {
        &self.case.properties
    }
}

impl<B: NnOps> StagedPredictor<B> {
    /// Reads the networks that `options` names, and those of `first`, checkpoints too, where they are a cascade's second stage.
    ///
    /// # Errors
    /// A checkpoint is missing or damaged; the networks need a first stage and `first` is empty, or is not that stage.
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

    /// The networks whose answer counts.
    pub fn last(&self) -> &Predictor<B> {
        &self.last
    }

    /// What is done to an image before the networks of each stage see it.
    pub fn preprocessors(&self) -> Vec<Preprocessor> {
        let stages = self.first.iter().chain([&self.last]);
        stages.map(|stage| stage.preprocessor().clone()).collect()
    }

    /// All that can be done before the first networks are asked.
    ///
    /// # Errors
    /// The image does not suit them.
    pub fn prepare(&self, case: Case) -> Result<PreparedImage, InferError> {
        match &self.first {
            None => Ok(PreparedImage { case: self.last.preprocess(&case)?, raw: None }),
            Some(first) => Ok(PreparedImage { case: first.preprocess(&case)?, raw: Some(case) }),
        }
    }

    /// The image's segmentation, in its own geometry: that of the first stage goes with the image to the second.
    ///
    /// # Errors
    /// The image needs more memory than it may take.
    pub fn segment(&self, image: PreparedImage, with_probabilities: bool) -> Result<Segmentation, InferError> {
        let PreparedImage { mut case, raw } = image;
        if let (Some(first), Some(raw)) = (&self.first, raw) {
            let found = first.segment(case.data.view(), &case.properties, false)?;
            case = self.last.preprocess(&Case { label: Some(found.labels), ..raw })?;
        }
        self.last.segment(case.data.view(), &case.properties, with_probabilities)
    }
}
