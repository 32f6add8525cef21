//! Contents of a checkpoint: network, training state and their description in `checkpoint.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder;
use super::{HEADER, NETWORK, OPTIMIZER};
use crate::model::{ModelDescription, TensorFileError, TensorState, parse_tensors, serialize_tensors};
use nnunet_comm::distributed::{CommError, Communicator};

/// State needed to resume a run exactly. Random numbers are keyed by their position in the run, so no generator state
/// is saved.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub model: ModelDescription,
    pub training: Training,
    /// The network's weights.
    pub weights: Vec<TensorState>,
    /// Optimizer state as returned by [`crate::optim::Optimizer::state`].
    pub optimizer: Vec<TensorState>,
}

/// Error reading a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0}")]
    File(#[from] TensorFileError),
    #[error("{0}")]
    Comm(#[from] CommError),
}

impl Checkpoint {
    /// Writes the checkpoint folder atomically, replacing an existing one; an interrupted write leaves the old one
    /// intact.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TensorFileError> {
        let header = Header::new(self.model.clone(), Some(self.training.clone())).to_bytes();
        let network = serialize_tensors(path, &(), &self.weights)?;
        let optimizer = serialize_tensors(path, &(), &self.optimizer)?;
        let files = [(HEADER, header), (NETWORK, network), (OPTIMIZER, optimizer)];
        folder::write(path, &files).map_err(|error| cannot_be_written(path, &error))
    }

    /// Reads the checkpoint on rank 0 and broadcasts it to all ranks, which need not see the run directory. Falls back
    /// to the previous checkpoint if this one is damaged. Collective.
    ///
    /// # Errors
    /// Returns an error if there is no intact checkpoint or a rank is lost.
    pub fn read(path: &Path, comm: &dyn Communicator) -> Result<Self, ReadError> {
        let (path, mut files) = match comm.rank() {
            0 => folder::read(path, [HEADER, NETWORK, OPTIMIZER])?,
            _ => (path.to_owned(), Default::default()),
        };
        for bytes in &mut files {
            let mut length = (bytes.len() as u64).to_le_bytes();
            comm.broadcast_bytes(&mut length, 0, "checkpoint length")?;
            bytes.resize(u64::from_le_bytes(length) as usize, 0);
            comm.broadcast_bytes(bytes, 0, "checkpoint")?;
        }
        Ok(Self::parse(&path, &files)?)
    }

    fn parse(path: &Path, [header, network, optimizer]: &[Vec<u8>; 3]) -> Result<Self, TensorFileError> {
        let Header { model, training, .. } = Header::parse(path, header)?;
        let alone = "has no training state, so it cannot be resumed; start a new run with --pretrained-weights";
        let training = training.ok_or_else(|| TensorFileError::new(path, alone))?;
        let (_, weights) = parse_tensors::<()>(&path.join(NETWORK), network)?;
        let (_, optimizer) = parse_tensors::<()>(&path.join(OPTIMIZER), optimizer)?;
        Ok(Self { model, training, weights, optimizer })
    }
}

/// A checkpoint's network without the training state.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedModel {
    pub description: ModelDescription,
    /// All weights, sorted by name.
    pub weights: Vec<TensorState>,
}

impl SavedModel {
    /// Reads the network of a checkpoint; falls back to the previous checkpoint if it is damaged.
    ///
    /// # Errors
    /// Returns an error if the checkpoint is missing or damaged and there is no intact earlier one.
    pub fn read(path: &Path) -> Result<Self, TensorFileError> {
        let (path, [header, network]) = folder::read(path, [HEADER, NETWORK])?;
        let (_, weights) = parse_tensors::<()>(&path.join(NETWORK), &network)?;
        Ok(Self { description: Header::parse(&path, &header)?.model, weights })
    }

    /// Writes a checkpoint without training state: usable for prediction and as pretrained weights, but not for
    /// resuming.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TensorFileError> {
        let network = serialize_tensors(path, &(), &self.weights)?;
        let header = Header::new(self.description.clone(), None).to_bytes();
        let files = [(HEADER, header), (NETWORK, network)];
        folder::write(path, &files).map_err(|error| cannot_be_written(path, &error))
    }
}

pub(super) fn cannot_be_written(path: &Path, error: &std::io::Error) -> TensorFileError {
    TensorFileError::new(path, format!("cannot be written: {error}"))
}

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
    /// Number of compute threads per rank, on which the last bits of sums depend; 0 in checkpoints of earlier versions.
    #[serde(default)]
    pub threads: usize,
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
        let fail = |defect: String| TensorFileError::new(&path.join(HEADER), defect);
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
