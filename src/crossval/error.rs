//! Error type of cross-validation commands.

use std::path::{Path, PathBuf};

use nnunet_data::dataset::DatasetError;
use nnunet_data::plan::PlanError;
use nnunet_data::work::ConfigError;
use nnunet_eval::EvalError;
use nnunet_infer::ensemble::EnsembleError;

/// A cross-validation that is incomplete or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CrossvalError {
    /// The work folder does not state the location of the dataset.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The plans cannot be read or used.
    #[error("{0}")]
    Plans(#[from] PlanError),
    /// The dataset cannot be read.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// Predictions cannot be evaluated.
    #[error("{0}")]
    Eval(#[from] EvalError),
    /// Probabilities cannot be averaged.
    #[error("{0}")]
    Ensemble(#[from] EnsembleError),
    /// Something is missing or present twice.
    #[error("{}: {defect}", path.display())]
    Invalid {
        /// Path of the file or folder.
        path: PathBuf,
        /// Description of the problem, and its remedy.
        defect: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
}

impl CrossvalError {
    pub(super) fn invalid(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self::Invalid { path: path.to_owned(), defect: defect.to_string() }
    }

    pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}
