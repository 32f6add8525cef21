//! Why a training run ended early.

use std::path::{Path, PathBuf};

use super::incident::Incident;
use crate::telemetry::TelemetryError;
use nnunet_comm::distributed::CommError;
use nnunet_data::dataset::DatasetError;
use nnunet_data::loader::LoaderError;
use nnunet_data::plan::PlanError;
use nnunet_data::store::{LocalCacheError, StoreError};
use nnunet_eval::EvalError;
use nnunet_infer::InferError;
use nnunet_interop::InteropError;
use nnunet_nn::backend::DeviceError;
use nnunet_nn::model::TensorFileError;

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
    Stage(#[from] LocalCacheError),
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
    /// The log, or the run's own description, cannot be written.
    #[error("{0}")]
    Telemetry(#[from] TelemetryError),
    /// The held-out cases could not be predicted.
    #[error("{0}")]
    Infer(#[from] InferError),
    /// The held-out cases could not be evaluated.
    #[error("{0}")]
    Eval(#[from] EvalError),
    /// The run's own description cannot be read.
    #[error("{0}")]
    Config(#[from] nnunet_data::work::ConfigError),
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
    #[error("{}", diverged(incident, folder))]
    Diverged {
        incident: Box<Incident>,
        /// Where it is kept.
        folder: PathBuf,
    },
    /// The build or the machine lacks the device.
    #[error("{0}")]
    Device(#[from] DeviceError),
}

/// Cases that an error names before it only counts them.
const LISTED: usize = 10;

fn diverged(incident: &Incident, folder: &Path) -> String {
    let Incident { epoch, iteration, loss, gradient_norm, lr, cases, .. } = incident;
    let value = |value: &Option<f64>| value.map_or("no number".to_owned(), |value| value.to_string());
    format!(
        "in epoch {}, step {}, at a learning rate of {lr}, the loss is {} and the gradient's norm {}, with samples of {}; \
         `nnunet-dist replay {}` says where it begins; a lower --lr or --on-nan rollback may help",
        epoch + 1,
        iteration + 1,
        value(loss),
        value(gradient_norm),
        listed(cases),
        folder.display()
    )
}

fn listed(cases: &[String]) -> String {
    let more = if cases.len() > LISTED { ", …" } else { "" };
    cases[..cases.len().min(LISTED)].join(", ") + more
}
