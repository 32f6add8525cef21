//! Inference: from a checkpoint and an image to a label map in the image's own geometry.
//!
//! [`SlidingWindow`] moves the network over a preprocessed image and blends what it says; [`Predictor`] puts
//! preprocessing before it and the way back to the raw image behind it; [`predict_folder`] does so to a folder,
//! [`validate_fold`] to the cases a training run has held out.

mod error;
mod export;
mod folder;
mod gaussian;
mod predictor;
mod sliding_window;
mod steps;
mod validation;

pub use error::InferError;
pub use export::Segmentation;
pub use folder::{PredictOptions, predict_folder};
pub use gaussian::{Blend, importance};
pub use predictor::{Predictor, WindowOptions};
pub use sliding_window::SlidingWindow;
pub use steps::window_steps;
pub use validation::validate_fold;
