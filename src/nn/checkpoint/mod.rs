//! Checkpoints: folders with a network and, of a run in training, all that it needs to go on.
//!
//! ```text
//! RUN/checkpoint_latest -> checkpoints/step_0000000500    symbolic links, which make a checkpoint count
//! RUN/checkpoint_best   -> checkpoints/step_0000000250
//! RUN/checkpoints/step_0000000500/
//!   checkpoint.json         what the network was trained for, and how far the run has come
//!   network.safetensors     the weights, by nnU-Net's names
//!   optimizer.safetensors   the optimiser's state; not there where a network has been imported
//!   SHA256SUMS              of these files, as `sha256sum -c` checks them
//! ```
//!
//! A folder appears under its name when all of it is on the disk, and every reader compares the sums: of what is damaged
//! the checkpoint before it is taken, with a warning.

mod folder;
mod header;
mod history;
mod listed;
mod names;
mod saved;
mod training;

pub use folder::{read as read_folder, write as write_folder};
pub use header::{Progress, Training};
pub use history::{History, Keep};
pub use listed::{Contents, Listed, list};
pub use saved::SavedModel;
pub use training::{Checkpoint, ReadError};

/// A folder is a checkpoint if it has this file.
pub const HEADER: &str = "checkpoint.json";
/// The weights.
pub const NETWORK: &str = "network.safetensors";
/// The optimiser's state.
pub const OPTIMIZER: &str = "optimizer.safetensors";
