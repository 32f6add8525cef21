//! A training run in one file: network, optimiser and how far it has come.

use std::io::{self, ErrorKind};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dist::{CommError, Communicator};
use crate::model::{
    ModelDescription, TensorFileError, TensorState, WEIGHTS_PREFIX, parse_tensors, with_prefix, write_tensors,
};

/// Names of the optimiser's state begin with this.
const OPTIMIZER_PREFIX: &str = "optimizer.";

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Number of finished epochs, which is the number of the next.
    pub next_epoch: usize,
    /// Steps of that epoch that are done, where the run was stopped within it.
    #[serde(default)]
    pub next_iteration: usize,
    /// Their sum of losses.
    #[serde(default)]
    pub loss_sum: f64,
    /// Their sum of gradient norms.
    #[serde(default)]
    pub gradient_norm_sum: f64,
    /// Those of them without an update.
    #[serde(default)]
    pub skipped_steps: usize,
    /// Of the last step.
    #[serde(default)]
    pub loss_scale: f64,
    /// Exponential moving average of the mean pseudo Dice.
    pub ema_pseudo_dice: Option<f64>,
    /// The best it has been.
    pub best_ema_pseudo_dice: Option<f64>,
}

/// Everything a run needs to go on as if it had never stopped. Random draws are keyed by epoch, so no generator is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub model: ModelDescription,
    pub progress: Progress,
    /// The network's weights.
    pub weights: Vec<TensorState>,
    /// [`crate::optim::Optimizer::state`].
    pub optimizer: Vec<TensorState>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    model: ModelDescription,
    /// `None` in a checkpoint of a network alone ([`crate::model::SavedModel::write`]).
    progress: Option<Progress>,
}

/// Why a checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0}")]
    File(#[from] TensorFileError),
    #[error("{0}")]
    Comm(#[from] CommError),
}

impl Checkpoint {
    /// Writes the file anew; an interrupted write leaves the old one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self, path: &Path) -> Result<(), TensorFileError> {
        let named = |prefix: &'static str| {
            move |mut tensor: TensorState| {
                tensor.spec.name.insert_str(0, prefix);
                tensor
            }
        };
        let weights = self.weights.into_iter().map(named(WEIGHTS_PREFIX));
        let tensors: Vec<_> = weights.chain(self.optimizer.into_iter().map(named(OPTIMIZER_PREFIX))).collect();
        write_tensors(path, &Header { model: self.model, progress: Some(self.progress) }, &tensors)
    }

    /// Reads the file on rank 0 and gives every rank the same contents, whether it sees the run directory or not.
    ///
    /// # Errors
    /// The file is missing or damaged, or a rank is gone.
    pub fn read(path: &Path, comm: &dyn Communicator) -> Result<Self, ReadError> {
        let bytes =
            if comm.rank() == 0 { std::fs::read(path).map_err(|error| unreadable(path, error))? } else { Vec::new() };
        let mut length = (bytes.len() as u64).to_le_bytes();
        comm.broadcast_bytes(&mut length, 0, "checkpoint length")?;
        let mut bytes = bytes;
        bytes.resize(u64::from_le_bytes(length) as usize, 0);
        comm.broadcast_bytes(&mut bytes, 0, "checkpoint")?;
        Ok(Self::parse(path, &bytes)?)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, TensorFileError> {
        let (header, tensors): (Header, _) = parse_tensors(path, bytes)?;
        let progress = header.progress.ok_or_else(|| {
            TensorFileError::new(
                path,
                "holds a network and no training to go on with; begin one by --pretrained-weights",
            )
        })?;
        let (weights, optimizer) = tensors.into_iter().partition(|tensor| tensor.spec.name.starts_with(WEIGHTS_PREFIX));
        Ok(Self {
            model: header.model,
            progress,
            weights: with_prefix(weights, WEIGHTS_PREFIX),
            optimizer: with_prefix(optimizer, OPTIMIZER_PREFIX),
        })
    }
}

fn unreadable(path: &Path, error: io::Error) -> TensorFileError {
    match error.kind() {
        ErrorKind::NotFound => TensorFileError::new(path, "there is nothing to resume from; train without --resume"),
        _ => TensorFileError::new(path, error),
    }
}
