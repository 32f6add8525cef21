//! The files of one training run.

use std::path::{Path, PathBuf};

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
