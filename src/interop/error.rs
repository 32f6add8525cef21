//! Why a file of another program could not be read or written.

use std::path::{Path, PathBuf};

use nnunet_data::dataset::DatasetError;
use nnunet_data::plan::PlanError;
use nnunet_data::store::StoreError;
use nnunet_data::work::ConfigError;
use nnunet_nn::model::TensorFileError;

/// A file of another program that cannot be read, or a model that cannot be written for one.
#[derive(Debug, thiserror::Error)]
pub enum InteropError {
    /// What is wrong with a file, and what to do.
    #[error("{}: {defect}", path.display())]
    File { path: PathBuf, defect: String },
    /// A checkpoint of ours, or a safetensors file.
    #[error("{0}")]
    Tensors(#[from] TensorFileError),
    /// Plans cannot be read or followed.
    #[error("{0}")]
    Plans(#[from] PlanError),
    /// A dataset's description, fingerprint or splits.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// A preprocessed case cannot be written.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The work folder's link to the raw dataset.
    #[error("{0}")]
    Config(#[from] ConfigError),
}

impl InteropError {
    /// A defect of the file at `path`.
    pub fn new(path: &Path, defect: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), defect: defect.to_string() }
    }
}
