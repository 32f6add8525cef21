//! The files of one training run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The folder of one training run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The run at `root`; nothing is read or created.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// One JSON object per epoch.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.jsonl")
    }

    /// All checkpoints that are kept, see [`nnunet_nn::checkpoint`].
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The newest checkpoint.
    pub fn checkpoint_latest(&self) -> PathBuf {
        self.root.join("checkpoint_latest")
    }

    /// The checkpoint with the best moving average of the pseudo Dice.
    pub fn checkpoint_best(&self) -> PathBuf {
        self.root.join("checkpoint_best")
    }

    /// Steps whose loss or gradient was no number, kept for `nnunet-dist replay`.
    pub fn incidents(&self) -> PathBuf {
        self.root.join("incidents")
    }

    /// What the processes did in some steps, see [`nnunet_core::trace`].
    pub fn trace(&self) -> PathBuf {
        self.root.join("trace.json")
    }

    /// Where the run stands.
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    /// Event files, where they are asked for.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// Losses, pseudo Dice, epoch times and learning rate, drawn after each epoch.
    pub fn progress(&self) -> PathBuf {
        self.root.join("progress.png")
    }

    /// In a cascade, segmentations of the fold's validation cases for the next stage, in the voxels of its preprocessed cases.
    pub fn predicted_next_stage(&self, configuration: &str) -> PathBuf {
        self.root.join("predicted_next_stage").join(configuration)
    }

    /// Predictions of the fold's validation cases, and their `summary.json`.
    pub fn validation(&self) -> PathBuf {
        self.root.join("validation")
    }
}

/// Which cases are held out: those of one fold of `splits_final.json`, or none.
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
