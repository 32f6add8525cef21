//! Why a training run ended early.

use std::path::PathBuf;

use crate::backend::DeviceError;
use crate::dataset::DatasetError;
use crate::dist::CommError;
use crate::eval::EvalError;
use crate::infer::InferError;
use crate::interop::InteropError;
use crate::loader::LoaderError;
use crate::model::TensorFileError;
use crate::plan::PlanError;
use crate::store::{StageError, StoreError};
use crate::telemetry::TelemetryError;

/// A training run that cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The plans cannot be read or followed.
    #[error("{0}")]
    Plans(#[from] PlanError),
    /// The dataset's description, splits or raw labels are missing or damaged.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// The preprocessed cases cannot be read.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The preprocessed cases cannot be copied to a local disk.
    #[error("{0}")]
    Stage(#[from] StageError),
    /// A batch could not be made.
    #[error("{0}")]
    Loader(#[from] LoaderError),
    /// A rank or the network failed.
    #[error("{0}")]
    Comm(#[from] CommError),
    /// A checkpoint cannot be read or written.
    #[error("{0}")]
    File(#[from] TensorFileError),
    /// A checkpoint is not one of this run.
    #[error("{path}: {defect}; is it of another dataset or configuration?")]
    Checkpoint { path: PathBuf, defect: String },
    /// The newest checkpoint cannot be written.
    #[error("{}: {defect}; the last steps are not saved: make room on the disk, and go on with --resume", path.display())]
    Unsaved { path: PathBuf, defect: String },
    /// A run that is to be validated has not been trained.
    #[error("{}: {defect}", path.display())]
    Untrained { path: PathBuf, defect: String },
    /// The weights to begin with cannot be read, or are of another network.
    #[error("{0}")]
    Pretrained(#[from] InteropError),
    /// The log cannot be written.
    #[error("{0}")]
    Telemetry(#[from] TelemetryError),
    /// The held-out cases could not be predicted.
    #[error("{0}")]
    Infer(#[from] InferError),
    /// The held-out cases could not be evaluated.
    #[error("{0}")]
    Eval(#[from] EvalError),
    /// The run's own description cannot be read or written.
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
    /// The first stage of a cascade has not predicted all cases.
    #[error(
        "{stage} has left no segmentations of {} of {} cases: {}; make them with `{}`",
        missing.len(), missing.len() + found, listed(missing), commands.join("`, `")
    )]
    PreviousStage {
        stage: String,
        missing: Vec<String>,
        /// Number of the others.
        found: usize,
        commands: Vec<String>,
    },
    /// Loss or gradient are no longer numbers.
    #[error(
        "training has diverged: in epoch {epoch}, step {iteration}, at a learning rate of {lr}, the loss is {loss} and \
         the gradient's norm {norm}; resume from the last checkpoint with a lower --lr"
    )]
    Diverged { epoch: usize, iteration: usize, loss: f64, norm: f64, lr: f64 },
    /// The build or the machine lacks the device.
    #[error("{0}")]
    Device(#[from] DeviceError),
}

/// Cases that an error names before it only counts them.
const LISTED: usize = 10;

fn listed(cases: &[String]) -> String {
    let more = if cases.len() > LISTED { ", …" } else { "" };
    cases[..cases.len().min(LISTED)].join(", ") + more
}
