//! Checkpoints: folders that hold a network and, for a training run, the state needed to resume it.
//!
//! ```text
//! RUN/checkpoint_latest -> checkpoints/step_0000000500    symbolic links to the latest and best
//! RUN/checkpoint_best   -> checkpoints/step_0000000250
//! RUN/checkpoints/step_0000000500/
//!   checkpoint.json         model description and training progress
//!   network.safetensors     the weights, with nnU-Net's names
//!   optimizer.safetensors   the optimizer state; absent for imported networks
//!   SHA256SUMS              checksums of these files, for `sha256sum -c`
//! ```
//!
//! A folder appears at its final path only when all its files are on disk. Readers verify the checksums and fall back
//! to the previous checkpoint, with a warning, if one is damaged.

mod contents;
mod folder;
mod manager;

pub use contents::{Checkpoint, Progress, ReadError, SavedModel, Training};
pub use folder::{read as read_folder, write as write_folder};
pub use manager::{CheckpointInfo, CheckpointManager, Contents, RetentionPolicy, list};

/// Name of the header file. A folder is a checkpoint if it has this file.
pub const HEADER: &str = "checkpoint.json";
/// Name of the weights file.
pub const NETWORK: &str = "network.safetensors";
/// Name of the optimizer state file.
pub const OPTIMIZER: &str = "optimizer.safetensors";
