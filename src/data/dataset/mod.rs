//! Raw datasets: files of each case, consistency checks, statistics for the planner, and cross-validation folds.
//!
//! [`Dataset::open`] reads the layouts of nnU-Net v2 and the Medical Segmentation Decathlon; the rest of the crate does
//! not depend on the layout. [`validate`] checks every file before any work is spent on the dataset, so later stages
//! encounter defects only if files change in the meantime.

mod case;
mod dataset_json;
mod describe;
mod fingerprint;
mod layout;
mod left_out;
mod numpy;
mod raw;
mod regions;
mod slips;
mod splits;
mod validate;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use nnunet_core::user_file::UserFileError;
use nnunet_image::ImageError;

pub use case::{Case, CaseFiles, case_name, find_images, group_images};
pub use dataset_json::{DatasetJson, Foreground, LabelValue};
pub use describe::write_description;
pub use fingerprint::{Fingerprint, IntensityProperties, extract_fingerprint};
pub use layout::{RawLayout, convert_dataset};
pub use left_out::left_out;
pub use raw::Dataset;
pub use slips::label_problem;
pub use splits::{Fold, Splits};
pub use validate::{left_out_of, validate};

/// An error in a dataset or a file that describes one.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder has invalid contents.
    #[error("{}: {defect}", path.display())]
    Invalid { path: PathBuf, defect: String },
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The cross-validation splits are invalid or lack the requested fold.
    #[error("splits: {0}")]
    Splits(String),
    /// An image or label map cannot be read.
    #[error("{0}")]
    Image(#[from] ImageError),
}

impl DatasetError {
    pub fn invalid(path: &Path, defect: impl Display) -> Self {
        Self::Invalid { path: path.to_owned(), defect: defect.to_string() }
    }

    fn user_file(path: &Path) -> impl Fn(UserFileError) -> Self {
        move |error| match error {
            UserFileError::Io(source) => Self::Io { path: path.to_owned(), source },
            UserFileError::Invalid(defect) => Self::Invalid { path: path.to_owned(), defect },
        }
    }

    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
