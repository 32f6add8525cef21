//! Errors of import and export.

use std::path::{Path, PathBuf};

use nnunet_data::dataset::DatasetError;
use nnunet_data::plan::PlanError;
use nnunet_data::store::StoreError;
use nnunet_data::work::ConfigError;
use nnunet_nn::model::TensorFileError;

/// Error while reading a file of another program, or while exporting a model.
#[derive(Debug, thiserror::Error)]
pub enum InteropError {
    /// Problem with a file, and a remedy.
    #[error("{}: {defect}", path.display())]
    File { path: PathBuf, defect: String },
    /// Error in a checkpoint of this program or in a safetensors file.
    #[error("{0}")]
    Tensors(#[from] TensorFileError),
    /// Plans cannot be read or are not supported.
    #[error("{0}")]
    Plans(#[from] PlanError),
    /// Error in a dataset's description, fingerprint or splits.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// A preprocessed case cannot be written.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Error in the work folder's reference to the raw dataset.
    #[error("{0}")]
    Config(#[from] ConfigError),
}

impl InteropError {
    /// Creates an error for the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), defect: defect.to_string() }
    }
}
