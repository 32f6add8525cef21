//! Why a prediction failed.

use std::io;
use std::path::PathBuf;

use super::ProbabilityError;
use nnunet_comm::distributed::CommError;
use nnunet_data::dataset::DatasetError;
use nnunet_data::plan::PlanError;
use nnunet_data::preprocess::PreprocessError;
use nnunet_data::store::StoreError;
use nnunet_image::ImageError;
use nnunet_nn::backend::DeviceError;
use nnunet_nn::model::{StateError, TensorFileError};

/// A prediction that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The checkpoint cannot be read.
    #[error("{0}")]
    Checkpoint(#[from] TensorFileError),
    /// The checkpoint's weights are not those of its plans.
    #[error("{path}: {cause}")]
    Weights { path: PathBuf, cause: StateError },
    /// Networks of an ensemble differ in more than their weights.
    #[error(
        "{}: has not the {what} of {}: networks of one ensemble differ in nothing but their weights; predict with each \
         and --save-probabilities, and average those", path.display(), first.display()
    )]
    Ensemble { first: PathBuf, path: PathBuf, what: &'static str },
    /// Nobody said which network.
    #[error("no checkpoint was named")]
    NoCheckpoint,
    /// The checkpoint's plans cannot be followed.
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
    /// A result cannot be written.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// An image in memory is none.
    #[error("the image {0}")]
    Array(String),
    /// A result cannot be written.
    #[error("{path}: cannot be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    /// Class probabilities cannot be written.
    #[error("{0}")]
    Probabilities(#[from] ProbabilityError),
    /// An image needs more memory than it may take.
    #[error(
        "the sums of its windows' logits take {} MiB even in half precision, more than the {} MiB of --max-memory",
        needed.div_ceil(1 << 20), limit >> 20
    )]
    Memory { needed: u64, limit: u64 },
    /// The network is the second stage of a cascade, and there is nothing from the first.
    #[error(
        "the network is the second stage of a cascade and needs the segmentations of {name}: give the run that makes \
         them with --prev-stage, or for images in files the segmentations themselves with --prev-stage-predictions"
    )]
    NoPreviousStage { name: String },
    /// The network takes no segmentations of a previous stage.
    #[error("{configuration} is not the second stage of a cascade; leave out what is given of a previous stage")]
    NotCascaded { configuration: String },
    /// The run that is to be the first stage is of another configuration than the second was trained behind.
    #[error("{path}: was trained as {found}, but the second stage of the cascade comes after {wanted}")]
    OtherStage { path: PathBuf, found: String, wanted: String },
    /// The first stage's segmentations of some cases are missing.
    #[error("{folder}: no segmentation by the previous stage of {number} case(s): {first}{}", if *number > 1 { ", …" } else { "" })]
    PreviousMissing { folder: PathBuf, number: usize, first: String },
    /// Some cases of a folder failed; the others are there.
    #[error("{} of {total} cases failed: {}", failed.len(), failed.join("; "))]
    Cases { failed: Vec<String>, total: usize },
    /// A rank is gone.
    #[error("{0}")]
    Comm(#[from] CommError),
    /// The build or the machine lacks the device.
    #[error("{0}")]
    Device(#[from] DeviceError),
}
