//! A trained network with its model description.

use std::path::Path;

use super::folder;
use super::header::Header;
use super::{HEADER, NETWORK};
use crate::model::{ModelDescription, TensorFileError, TensorState, parse_tensors, serialize_tensors};

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
