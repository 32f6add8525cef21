//! Where the files of a dataset and of its runs lie.

use std::path::{Path, PathBuf};

use super::FoldId;

/// The work folder of one dataset: what `plan` and `preprocess` make and `train` reads.
///
/// ```text
/// WORK/
///   source.toml                   where the raw dataset lies
///   dataset.json                  nnU-Net v2's schema, also for a dataset in MSD's
///   dataset_fingerprint.json
///   nnUNetPlans.json
///   splits_final.json
///   preprocessed/DATA_IDENTIFIER/ one store per data identifier of the plans
///   runs/CONFIGURATION/fold_FOLD/ see RunDir
///   runs/CONFIGURATION/crossval_results_folds_FOLDS/
///   ensembles/NAME/               held-out cases as two configurations together predict them
///   inference_information.json, inference_instructions.txt
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkDir {
    root: PathBuf,
}

impl WorkDir {
    /// The work folder at `root`; nothing is read or created.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the raw dataset lies, see [`super::Source`].
    pub fn source(&self) -> PathBuf {
        self.root.join("source.toml")
    }

    /// The dataset's description.
    pub fn dataset_json(&self) -> PathBuf {
        self.root.join("dataset.json")
    }

    /// The dataset's fingerprint.
    pub fn fingerprint(&self) -> PathBuf {
        self.root.join("dataset_fingerprint.json")
    }

    /// The plans.
    pub fn plans(&self) -> PathBuf {
        self.root.join("nnUNetPlans.json")
    }

    /// The cross-validation splits.
    pub fn splits(&self) -> PathBuf {
        self.root.join("splits_final.json")
    }

    /// The preprocessed cases of a data identifier (`nnUNetPlans_3d_fullres`).
    pub fn preprocessed(&self, data_identifier: &str) -> PathBuf {
        self.root.join("preprocessed").join(data_identifier)
    }

    /// The folder of a configuration's runs, one for each fold.
    pub fn runs(&self, configuration: &str) -> PathBuf {
        self.root.join("runs").join(configuration)
    }

    /// The default folder of a run.
    pub fn run(&self, configuration: &str, fold: FoldId) -> RunDir {
        RunDir::new(self.runs(configuration).join(format!("fold_{fold}")))
    }

    /// The held-out cases of a configuration's `folds`, such as `0_1_2`.
    pub fn crossval(&self, configuration: &str, folds: &str) -> PathBuf {
        self.runs(configuration).join(format!("crossval_results_folds_{folds}"))
    }

    /// The held-out cases as an ensemble predicts them.
    pub fn ensemble(&self, name: &str) -> PathBuf {
        self.root.join("ensembles").join(name)
    }

    /// Which configuration or ensemble is best.
    pub fn inference_information(&self) -> PathBuf {
        self.root.join("inference_information.json")
    }

    /// The commands to predict with it.
    pub fn inference_instructions(&self) -> PathBuf {
        self.root.join("inference_instructions.txt")
    }
}

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

    /// The newest checkpoint.
    pub fn checkpoint_latest(&self) -> PathBuf {
        self.root.join("checkpoint_latest")
    }

    /// The checkpoint with the best moving average of the pseudo Dice.
    pub fn checkpoint_best(&self) -> PathBuf {
        self.root.join("checkpoint_best")
    }

    /// Where the run stands.
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    /// Losses, pseudo Dice, epoch times and learning rate, drawn after each epoch.
    pub fn progress(&self) -> PathBuf {
        self.root.join("progress.png")
    }

    /// Predictions of the fold's validation cases, and their `summary.json`.
    pub fn validation(&self) -> PathBuf {
        self.root.join("validation")
    }
}
