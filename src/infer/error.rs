//! Why a prediction failed.

use std::io;
use std::path::PathBuf;

use super::ProbabilityError;
use crate::backend::DeviceError;
use crate::dataset::DatasetError;
use crate::dist::CommError;
use crate::image::ImageError;
use crate::model::{StateError, TensorFileError};
use crate::plan::PlanError;
use crate::preprocess::PreprocessError;
use crate::store::StoreError;

/// A prediction that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The checkpoint cannot be read.
    #[error("{0}")]
    Checkpoint(#[from] TensorFileError),
    /// The checkpoint's weights are not those of its plans.
    #[error("{path}: {cause}")]
    Weights { path: PathBuf, cause: StateError },
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
