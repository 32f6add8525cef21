//! Errors of prediction.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ProbabilityError;
use nnunet_comm::distributed::CommError;
use nnunet_core::lock::LockError;
use nnunet_core::protect::InputOverwritten;
use nnunet_data::dataset::DatasetError;
use nnunet_data::plan::PlanError;
use nnunet_data::preprocess::PreprocessError;
use nnunet_data::store::StoreError;
use nnunet_image::ImageError;
use nnunet_nn::backend::DeviceError;
use nnunet_nn::model::{StateError, TensorFileError};

/// Error of a prediction.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The checkpoint cannot be read.
    #[error("{0}")]
    Checkpoint(#[from] TensorFileError),
    /// The checkpoint's weights do not match its plans.
    #[error("{path}: {cause}")]
    Weights { path: PathBuf, cause: StateError },
    /// Networks of an ensemble differ in more than their weights.
    #[error(
        "{}: differs from {} in the {what}; networks of an ensemble may differ only in their weights: predict with \
         each one using --save-probabilities and average with `nnunet-dist ensemble`", path.display(), first.display()
    )]
    Ensemble { first: PathBuf, path: PathBuf, what: &'static str },
    /// No checkpoint was given.
    #[error("no checkpoint given")]
    NoCheckpoint,
    /// The checkpoint's plans are not supported.
    #[error("{0}")]
    Plans(#[from] PlanError),
    /// The images cannot be found or read.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// An image cannot be preprocessed.
    #[error("{0}")]
    Preprocess(#[from] PreprocessError),
    /// A preprocessed case cannot be read.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A result would replace an input.
    #[error("{0}")]
    Overwritten(#[from] InputOverwritten),
    /// The output folder holds files that are not results.
    #[error("{}: {defect}; choose another output folder", path.display())]
    NotResults { path: PathBuf, defect: String },
    /// Another process writes to the output folder.
    #[error("{0}")]
    Locked(#[from] LockError),
    /// A result cannot be written.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// An array is not a valid image.
    #[error("the image {0}")]
    Array(String),
    /// A result cannot be written.
    #[error("{path}: cannot be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    /// Class probabilities cannot be written.
    #[error("{0}")]
    Probabilities(#[from] ProbabilityError),
    /// An image exceeds the memory limit.
    #[error(
        "the accumulated logits need {} MiB even in half precision, over the --max-memory limit of {} MiB",
        needed.div_ceil(1 << 20), limit >> 20
    )]
    Memory { needed: u64, limit: u64 },
    /// A result does not fit into the memory of the machine.
    #[error("{what} need {excess}")]
    TooLarge {
        /// Description of the arrays.
        what: String,
        /// Amount and limit.
        excess: String,
    },
    /// Prediction of a case panicked.
    #[error("the program panicked with the message above; this is a bug, please report it")]
    Panic,
    /// The network is the second stage of a cascade and the segmentations of the first are not given.
    #[error(
        "the network is the second stage of a cascade and needs the segmentations of {name}: pass the run of that \
         stage with --prev-stage, or, for image files, its segmentations with --prev-stage-predictions"
    )]
    NoPreviousStage { name: String },
    /// The network does not take segmentations of a previous stage.
    #[error("{configuration} is not the second stage of a cascade; omit the options for a previous stage")]
    NotCascaded { configuration: String },
    /// The run given as first stage has another configuration than the second stage was trained with.
    #[error("{path}: trained as {found}, but the second stage of the cascade requires {wanted}")]
    OtherStage { path: PathBuf, found: String, wanted: String },
    /// The first stage's segmentations of some cases are missing.
    #[error("{folder}: no previous-stage segmentation for {number} case(s): {first}{}", if *number > 1 { ", …" } else { "" })]
    PreviousMissing { folder: PathBuf, number: usize, first: String },
    /// Some cases of a folder failed; the results of the others were written.
    #[error("{} of {total} cases failed: {}", failed.len(), listed(failed))]
    Cases { failed: Vec<FailedCase>, total: usize },
    /// Communication with another rank failed.
    #[error("{0}")]
    Comm(#[from] CommError),
    /// The device is not available in this build or on this machine.
    #[error("{0}")]
    Device(#[from] DeviceError),
}

/// A case of a folder that failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FailedCase {
    /// Name of the case.
    pub case: String,
    /// Its error, in one line.
    pub error: String,
}

impl FailedCase {
    /// Creates the failure of a case. The error need not name the case.
    pub fn new(case: &str, error: &InferError) -> Self {
        let error = error.to_string();
        let error = error.strip_prefix(&format!("case {case}: ")).unwrap_or(&error).to_owned();
        Self { case: case.to_owned(), error }
    }
}

fn listed(failed: &[FailedCase]) -> String {
    failed.iter().map(|FailedCase { case, error }| format!("{case}: {error}")).collect::<Vec<_>>().join("; ")
}
