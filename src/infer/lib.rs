//! Inference: predicts a label map in the image's own geometry from checkpoints and an image.
//!
//! [`SlidingWindow`] moves the network over a preprocessed image and blends the logits; [`Predictor`] adds
//! preprocessing and the export to the raw image's geometry; [`predict_folder`] predicts images in files,
//! [`validate_fold`] the held-out cases of a training run, and [`CascadePredictor`] single images, optionally with both
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
//! let probabilities = found.probabilities; // (class, z, y, x), if requested
//! # Ok(())
//! # }
//! ```

mod accumulator;
mod argmax;
mod batching;
mod cascade;
mod cases;
mod checkpoints;
mod device_accumulator;
pub mod ensemble;
mod error;
mod export;
mod folder;
mod interpolation;
mod networks;
mod options;
mod output;
mod predictor;
mod previous_stage;
mod probabilities;
mod sliding_window;
mod validation;
mod windows;

pub use argmax::LabelRule;
pub use cascade::{CascadePredictor, PreparedImage, predict_cascade_folder};
pub use cases::{JobPart, find_cases};
pub use checkpoints::{CheckpointName, DEFAULT_FOLDS, find_checkpoints};
pub use error::{FailedCase, InferError};
pub use export::{Export, Segmentation};
pub use folder::{FolderOptions, PredictionCounts, predict_folder, read_finite_case};
pub use options::{AccumulatorDtype, Batching, MemoryOptions, PredictOptions, WindowOptions};
pub use predictor::Predictor;
pub use previous_stage::NextStage;
pub use probabilities::{
    ProbabilityArchive, ProbabilityError, ProbabilityMaps, save_probabilities, stream_probabilities,
};
pub use sliding_window::{InferenceTimings, SlidingWindow};
pub use validation::validate_fold;
pub use windows::{Blend, importance, window_positions};
