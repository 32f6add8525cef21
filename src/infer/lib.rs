//! Inference: predicts a label map in the image's own geometry from checkpoints and an image.
//!
//! [`SlidingWindow`] moves the network over a preprocessed image and blends the logits; [`Predictor`] adds
//! preprocessing and the export to the raw image's geometry; [`predict_folder`] predicts images in files,
//! [`validate_fold`] the held-out cases of a training run, and [`StagedPredictor`] single images, optionally with both
//! stages of a cascade. Several networks, such as those of the folds of a cross-validation, form an ensemble with
//! averaged logits.
//!
//! Logits are many times larger than their image, so they are never all in memory. Windows are processed in order of z.
//! A plane that no later window covers is resampled to the raw image's grid and reduced to labels at once.
//!
//! # Library use
//!
//! This example segments an array in memory with the networks of all folds:
//!
//! ```no_run
//! use ndarray::Array4;
//! use nnunet_nn::backend::CpuInference;
//! use nnunet_infer::{CheckpointName, Predictor, WindowOptions, find_checkpoints};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = "hippocampus/runs/3d_fullres".into();
//! let checkpoints = find_checkpoints(&[model], &[], CheckpointName::Latest)?;
//! let predictor = Predictor::<CpuInference>::open(&checkpoints, WindowOptions::default(), Default::default())?;
//!
//! let image = Array4::<f32>::zeros((1, 36, 50, 35)); // (channel, z, y, x), raw intensities
//! let found = predictor.predict_array(image.view(), [1.0, 1.0, 1.0], true)?; // spacing (z, y, x) in mm
//! let labels = found.labels.data; // (z, y, x)
//! let probabilities = found.probabilities; // (class, z, y, x), as they were asked for
//! # Ok(())
//! # }
//! ```

mod accumulator;
mod cascade;
mod cases;
mod checkpoints;
mod decide;
mod device_sums;
mod error;
mod export;
mod folder;
mod gaussian;
mod grid;
mod networks;
mod options;
mod output;
mod pickle;
mod portions;
mod predictor;
mod probabilities;
mod sliding_window;
mod staged;
mod stages;
mod steps;
mod taps;
mod validation;

pub use cascade::NextStage;
pub use cases::{Part, find_cases};
pub use checkpoints::{CheckpointName, DEFAULT_FOLDS, find_checkpoints};
pub use decide::Decision;
pub use error::InferError;
pub use export::Export;
pub use export::Segmentation;
pub use folder::load;
pub use folder::{FolderOptions, Predicted, predict_folder};
pub use gaussian::{Blend, importance};
pub use options::{AccumulatorDtype, MemoryOptions, PredictOptions, WindowOptions};
pub use portions::Portions;
pub use predictor::Predictor;
pub use probabilities::{
    ProbabilityArchive, ProbabilityError, ProbabilityMaps, save_probabilities, stream_probabilities,
};
pub use sliding_window::{SlidingWindow, Spent};
pub use staged::{PreparedImage, StagedPredictor};
pub use stages::predict_both_stages;
pub use steps::window_steps;
pub use validation::validate_fold;
pub mod ensemble;
