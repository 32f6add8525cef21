//! Prediction with both stages of a cascade: of folders, and of single images.

use std::path::{Path, PathBuf};

use nnunet_comm::distributed::Communicator;
use nnunet_data::dataset::Case;
use nnunet_data::preprocess::Preprocessor;
use nnunet_data::store::{CaseProperties, PreprocessedCase};
use nnunet_nn::checkpoint::SavedModel;
use nnunet_nn::model::ModelDescription;
use nnunet_nn::ops::NnOps;

use super::InferError;
use super::export::Segmentation;
use super::folder::{FolderOptions, PredictionCounts, predict_folder};
use super::options::PredictOptions;
use super::predictor::Predictor;

/// Folder of the first stage's label maps within that of the second.
const FIRST_STAGE: &str = "previous_stage";

/// Like [`predict_folder`] with the second stage of a cascade, after the networks of the checkpoints `first` have
/// segmented all images into the folder `previous_stage` within `output`.
///
/// # Errors
/// Returns the errors of [`predict_folder`] for either stage; cases that fail in the first stage are left out of the
/// second. Returns an error if `first` is not the stage that the second was trained with.
pub fn predict_cascade_folder(
    inputs: &[PathBuf],
    output: &Path,
    first: Vec<PathBuf>,
    second: &PredictOptions,
    folder: &FolderOptions,
    comm: &dyn Communicator,
) -> Result<PredictionCounts, InferError> {
    if let (Some(first), Some(second)) = (first.first(), second.checkpoints.first()) {
        check_order(first, &SavedModel::read(first)?.description, &SavedModel::read(second)?.description)?;
    }
    let between = output.join(FIRST_STAGE);
    if comm.rank() == 0 {
        tracing::info!("predicting the first stage into {}", between.display());
    }
    let options = PredictOptions { checkpoints: first, ..second.clone() };
    let first_stage = FolderOptions { save_probabilities: false, ..folder.clone() };
    let (mut failed, total) = match predict_folder(inputs, &between, &options, &first_stage, comm) {
        Ok(_) => (Vec::new(), 0),
        Err(InferError::Cases { failed, total }) if failed.len() < total => (failed, total),
        Err(error) => return Err(error),
    };
    let failed_before = failed.iter().map(|failed| failed.case.clone()).collect();
    let folder = FolderOptions { previous_stage: Some(between), failed_before, ..folder.clone() };
    match predict_folder(inputs, output, second, &folder, comm) {
        predicted if failed.is_empty() => predicted,
        Ok(_) => Err(InferError::Cases { failed, total }),
        Err(InferError::Cases { failed: later, .. }) => {
            failed.extend(later);
            failed.sort();
            Err(InferError::Cases { failed, total })
        }
        Err(error) => Err(error),
    }
}

/// Checks, before either network runs, that the `later` network was trained with the stage of the `earlier` one, whose
/// checkpoint is at `path`.
fn check_order(path: &Path, earlier: &ModelDescription, later: &ModelDescription) -> Result<(), InferError> {
    let configuration = later.plans.configuration(&later.configuration)?;
    let Some(wanted) = configuration.previous_stage_name() else {
        return Err(InferError::NotCascaded { configuration: later.configuration.clone() });
    };
    match earlier.configuration == wanted {
        true => Ok(()),
        false => Err(InferError::OtherStage {
            path: path.to_owned(),
            found: earlier.configuration.clone(),
            wanted: wanted.to_owned(),
        }),
    }
}

/// [`Predictor`], preceded by the first stage's predictor in a cascade.
pub struct CascadePredictor<B: NnOps> {
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

impl<B: NnOps> CascadePredictor<B> {
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
