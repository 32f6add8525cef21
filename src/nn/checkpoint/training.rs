//! Checkpoint of a training run after a step.

use std::path::Path;

use super::folder;
use super::header::{Header, Training};
use super::saved::cannot_be_written;
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
