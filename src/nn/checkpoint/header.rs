//! The `checkpoint.json` file of a checkpoint.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::{ModelDescription, TensorFileError};

/// Format version written by this program. Later versions are rejected.
const FORMAT: u32 = 1;

/// Contents of `checkpoint.json`: the model description and the training progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    format: u32,
    /// Program and version that wrote the checkpoint.
    pub program: String,
    pub model: ModelDescription,
    /// `None` for a network without training state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
}

/// Training state of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub progress: Progress,
    /// Whether it was the best checkpoint so far.
    pub is_best: bool,
    /// Number of ranks.
    pub world_size: usize,
    /// The resolved configuration, as in `config.toml`.
    pub config: String,
    /// Fingerprint of the preprocessed cases ([`crate::store::CaseStore::fingerprint`]).
    pub data: String,
}

/// Progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Number of finished epochs; also the index of the next epoch.
    pub next_epoch: usize,
    /// Finished steps of the current epoch; not 0 if the run was stopped within the epoch.
    pub next_iteration: usize,
    /// Sum of losses over these steps.
    pub loss_sum: f64,
    /// Sum of gradient norms over these steps.
    pub gradient_norm_sum: f64,
    /// Number of these steps whose update was skipped.
    pub skipped_steps: usize,
    /// Number of these steps whose loss was NaN or infinite; not included in `loss_sum`.
    #[serde(default)]
    pub nan_steps: usize,
    /// Loss scale of the last step.
    pub loss_scale: f64,
    /// Number of times the run has rolled back to an earlier checkpoint. Each rollback changes the random samples.
    #[serde(default)]
    pub rollbacks: u64,
    /// Exponential moving average of the mean pseudo Dice.
    pub ema_pseudo_dice: Option<f64>,
    /// Best value of the average so far.
    pub best_ema_pseudo_dice: Option<f64>,
}

impl Progress {
    /// Number of steps since the start of the run, given the number of steps per epoch.
    pub fn steps(&self, per_epoch: u64) -> u64 {
        self.next_epoch as u64 * per_epoch + self.next_iteration as u64
    }
}

impl Header {
    pub fn new(model: ModelDescription, training: Option<Training>) -> Self {
        let program = format!("{} {}", nnunet_core::PROGRAM, nnunet_core::VERSION);
        Self { format: FORMAT, program, model, training }
    }

    /// Serializes the file's contents.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_string_pretty(self).expect("numbers, strings and lists serialize to JSON");
        (json + "\n").into_bytes()
    }

    /// Parses the contents of `checkpoint.json` of the checkpoint at `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, TensorFileError> {
        let fail = |defect: String| TensorFileError::new(&path.join(super::HEADER), defect);
        #[derive(Deserialize)]
        struct Version {
            format: u32,
            program: String,
        }
        // Check the version first: a later format may have other fields.
        let version: Version = serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
        if version.format > FORMAT {
            let Version { format, program } = version;
            return Err(fail(format!("was written by {program} in format {format}; this version reads {FORMAT}")));
        }
        serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))
    }
}
