//! Errors of a training run.

use std::path::{Path, PathBuf};

use super::nan_dump::NanDump;
use crate::telemetry::TelemetryError;
use nnunet_comm::distributed::CommError;
use nnunet_core::lock::LockError;
use nnunet_data::dataset::DatasetError;
use nnunet_data::loader::LoaderError;
use nnunet_data::plan::PlanError;
use nnunet_data::store::{LocalCacheError, StoreError};
use nnunet_eval::EvalError;
use nnunet_infer::InferError;
use nnunet_interop::InteropError;
use nnunet_nn::backend::DeviceError;
use nnunet_nn::checkpoint::ReadError;
use nnunet_nn::model::TensorFileError;

/// Error that prevents a training run from starting or continuing.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The plans cannot be read or are not supported.
    #[error("{0}")]
    Plans(#[from] PlanError),
    /// The dataset's description, splits or raw labels are missing or invalid.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// The preprocessed cases cannot be read.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The preprocessed cases cannot be copied to a local disk.
    #[error("{0}")]
    Stage(#[from] LocalCacheError),
    /// A batch cannot be created.
    #[error("{0}")]
    Loader(#[from] LoaderError),
    /// A rank or the network failed.
    #[error("{0}")]
    Comm(#[from] CommError),
    /// A checkpoint cannot be read or written.
    #[error("{0}")]
    File(#[from] TensorFileError),
    /// A checkpoint does not belong to this run.
    #[error("{path}: {defect}; check that the checkpoint belongs to this dataset and configuration")]
    Checkpoint { path: PathBuf, defect: String },
    /// The newest checkpoint cannot be written.
    #[error("{}: {defect}; the last steps are not saved: free disk space and continue with --resume", path.display())]
    Unsaved { path: PathBuf, defect: String },
    /// The run directory holds a run that would be lost.
    #[error(
        "{}: holds a run ({found}); continue it with --resume, or start again with --overwrite, which keeps it under \
         another name", path.display()
    )]
    Exists {
        path: PathBuf,
        /// Epochs and Dice.
        found: String,
    },
    /// Another process works in the run directory.
    #[error("{0}")]
    Locked(#[from] LockError),
    /// A run cannot be validated because it has not been trained.
    #[error("{}: {defect}", path.display())]
    Untrained { path: PathBuf, defect: String },
    /// The pretrained weights cannot be read, or belong to a different network.
    #[error("{0}")]
    Pretrained(#[from] InteropError),
    /// The log or the configuration of the run cannot be written.
    #[error("{0}")]
    Telemetry(#[from] TelemetryError),
    /// The held-out cases cannot be predicted.
    #[error("{0}")]
    Infer(#[from] InferError),
    /// The held-out cases cannot be evaluated.
    #[error("{0}")]
    Eval(#[from] EvalError),
    /// The configuration of the run cannot be read.
    #[error("{0}")]
    Config(#[from] nnunet_data::work::ConfigError),
    /// The first stage of a cascade has not predicted all cases.
    #[error(
        "no segmentations from {stage} for {} of {} cases: {}; create them with `{}`",
        missing.len(), missing.len() + found, listed(missing), commands.join("`, `")
    )]
    PreviousStage {
        stage: String,
        missing: Vec<String>,
        /// Number of cases with a segmentation.
        found: usize,
        commands: Vec<String>,
    },
    /// The loss or gradient is NaN or infinite.
    #[error("{}", diverged(dump, folder))]
    Diverged {
        dump: Box<NanDump>,
        /// Folder of the dump.
        folder: PathBuf,
    },
    /// The device is not supported by the build, or missing on the machine.
    #[error("{0}")]
    Device(#[from] DeviceError),
}

/// Maximum number of cases that an error lists.
const LISTED: usize = 10;

fn diverged(dump: &NanDump, folder: &Path) -> String {
    let NanDump { epoch, iteration, loss, gradient_norm, lr, cases, .. } = dump;
    let value = |value: &Option<f64>| value.map_or("NaN or infinite".to_owned(), |value| value.to_string());
    format!(
        "epoch {}, step {}, learning rate {lr}: the loss is {}, the gradient norm is {}; cases: {}; run `nnunet-dist \
         replay {}` to locate the cause; a lower --lr or --on-nan rollback may help",
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

impl From<ReadError> for TrainError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::File(error) => error.into(),
            ReadError::Comm(error) => error.into(),
        }
    }
}
