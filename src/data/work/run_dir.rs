//! Paths of the files of one training run, and the name of its fold.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Folder of one training run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Creates the run folder at `root`; does not access the disk.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Path of the folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// Log with one JSON object per epoch.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    /// Folder of all checkpoints that are kept, see `nnunet_nn::checkpoint`.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Newest checkpoint.
    pub fn checkpoint_latest(&self) -> PathBuf {
        self.root.join("checkpoint_latest")
    }

    /// Checkpoint with the best moving average of the pseudo Dice.
    pub fn checkpoint_best(&self) -> PathBuf {
        self.root.join("checkpoint_best")
    }

    /// Dumps of steps whose loss or gradient was NaN or infinite, for `nnunet-dist replay`.
    pub fn nan_dumps(&self) -> PathBuf {
        self.root.join("nan_dumps")
    }

    /// Log lines of the run, as printed on standard error by rank 0.
    pub fn text_log(&self) -> PathBuf {
        self.root.join("train.log")
    }

    /// Folder of such dumps in runs of earlier versions.
    pub fn former_nan_dumps(&self) -> PathBuf {
        self.root.join("incidents")
    }

    /// Recorded timeline of some steps, see [`nnunet_core::trace`].
    pub fn trace(&self) -> PathBuf {
        self.root.join("trace.json")
    }

    /// Run status.
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    /// Event files for TensorBoard, if enabled.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Plot of losses, pseudo Dice, epoch times and learning rate, updated after each epoch.
    pub fn progress(&self) -> PathBuf {
        self.root.join("progress.png")
    }

    /// Segmentations of the fold's validation cases for the next stage of a cascade, in the voxels of its preprocessed
    /// cases.
    pub fn predicted_next_stage(&self, configuration: &str) -> PathBuf {
        self.root.join("predicted_next_stage").join(configuration)
    }

    /// Predictions for the fold's validation cases, and their `summary.json`.
    pub fn validation(&self) -> PathBuf {
        self.root.join("validation")
    }
}

/// The held-out cases: those of one fold of `splits_final.json`, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FoldId {
    /// Trains and validates on every case.
    All,
    /// Holds out the validation cases of this fold.
    Number(usize),
}

impl fmt::Display for FoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for FoldId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => {
                text.parse().map(Self::Number).map_err(|_| format!("a fold is `all` or a number from 0, not `{text}`"))
            }
        }
    }
}

impl TryFrom<String> for FoldId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FoldId> for String {
    fn from(fold: FoldId) -> Self {
        fold.to_string()
    }
}
