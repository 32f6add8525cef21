//! Inference: from a checkpoint and an image to a label map in the image's own geometry.
//!
//! [`SlidingWindow`] moves the network over a preprocessed image and blends what it says; [`Predictor`] puts
//! preprocessing before it and the way back to the raw image behind it; [`predict_folder`] does so to a folder,
//! [`validate_fold`] to the cases a training run has held out.
//!
//! Logits are many times larger than the image they are of, so they are never all in memory. Windows go in order of z; a
//! plane that no window to come reaches is resampled to the raw image's voxels and decided on at once, and only its labels
//! stay.

mod accumulator;
mod decide;
mod device_sums;
mod error;
mod export;
mod folder;
mod gaussian;
mod grid;
mod options;
mod portions;
mod predictor;
mod probabilities;
mod sliding_window;
mod steps;
mod taps;
mod validation;

pub(crate) use decide::Decision;
pub use error::InferError;
pub(crate) use export::Export;
pub use export::Segmentation;
pub use folder::{PredictOptions, predict_folder};
pub use gaussian::{Blend, importance};
pub use options::{Accumulate, MemoryOptions, WindowOptions};
pub(crate) use portions::Portions;
pub use predictor::Predictor;
pub use probabilities::{
    ProbabilityArchive, ProbabilityError, ProbabilityMaps, save_probabilities, stream_probabilities,
};
pub use sliding_window::{SlidingWindow, Spent};
pub use steps::window_steps;
pub use validation::validate_fold;
