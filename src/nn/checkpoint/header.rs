//! `checkpoint.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::{ModelDescription, TensorFileError};

/// Of what this program writes; it reads no later ones.
const FORMAT: u32 = 1;

/// What the network was trained for, and how far its training has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    format: u32,
    /// What has written it.
    pub program: String,
    pub model: ModelDescription,
    /// `None` of a network alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
}

/// The training that a checkpoint is of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub progress: Progress,
    /// Whether it was the best so far.
    pub is_best: bool,
    /// Number of ranks.
    pub world_size: usize,
    /// The resolved configuration, as in `config.toml`.
    pub config: String,
    /// Of the preprocessed cases ([`nnunet_data::store::CaseStore::fingerprint`]).
    pub data: String,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Number of finished epochs, which is the number of the next.
    pub next_epoch: usize,
    /// Steps of that epoch that are done, where the run was stopped within it.
    pub next_iteration: usize,
    /// Their sum of losses.
    pub loss_sum: f64,
    /// Their sum of gradient norms.
    pub gradient_norm_sum: f64,
    /// Those of them without an update.
    pub skipped_steps: usize,
    /// Those of them whose loss was no number, which is not in the sum.
    #[serde(default)]
    pub nan_steps: usize,
    /// Of the last step.
    pub loss_scale: f64,
    /// How often the run has gone back to an earlier checkpoint; each time its samples become others.
    #[serde(default)]
    pub rollbacks: u64,
    /// Exponential moving average of the mean pseudo Dice.
    pub ema_pseudo_dice: Option<f64>,
    /// The best it has been.
    pub best_ema_pseudo_dice: Option<f64>,
}

impl Progress {
    /// Steps since the beginning of the run, with so many to an epoch.
    pub fn steps(&self, per_epoch: u64) -> u64 {
        self.next_epoch as u64 * per_epoch + self.next_iteration as u64
    }
}

impl Header {
    pub fn new(model: ModelDescription, training: Option<Training>) -> Self {
        let program = format!("{} {}", nnunet_core::PROGRAM, nnunet_core::VERSION);
        Self { format: FORMAT, program, model, training }
    }

    /// The file's contents.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_string_pretty(self).expect("numbers, texts and lists can be written as JSON");
        (json + "\n").into_bytes()
    }

    /// Reads the contents of the file of the checkpoint at `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, TensorFileError> {
        let fail = |defect: String| TensorFileError::new(&path.join(super::HEADER), defect);
        #[derive(Deserialize)]
        struct Version {
            format: u32,
            program: String,
        }
        // First of all, for what follows may be another thing.
        let version: Version = serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
        if version.format > FORMAT {
            let Version { format, program } = version;
            return Err(fail(format!("was written by {program} in format {format}; this version reads {FORMAT}")));
        }
        serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))
    }
}
