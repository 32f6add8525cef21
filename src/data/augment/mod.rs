//! Data augmentation: turns the patch read from the store into the patch fed to the network.
//!
//! A [`Pipeline`] is one [`Spatial`] transform, which crops (and sometimes rotates and scales) the final patch from a
//! larger one, followed by named transforms with a probability each. A transform is a plain struct with `apply(&self,
//! &mut Patch, &mut Stream)`: all randomness comes from the stream, so a sample can be replayed.
//!
//! In a [`cascade`] the previous stage's label map goes through the spatial transform and mirroring together with the
//! labels, and then becomes input channels of the network.
//!
//! To add a transform, write its struct and its line in a preset (`docs/how-to/add-a-transform.md`). The presets follow
//! nnU-Net v2 (`nnUNetTrainer` and `nnUNetTrainerDA5`, `get_training_transforms`) and NVIDIA's nnU-Net
//! (`dali_loader.py`); the ranges and interpolation of the first two match batchgeneratorsv2 0.3.6.

mod axes;
pub mod cascade;
mod distributions;
mod filters;
mod intensity;
mod local;
mod low_resolution;
mod mask;
mod noise;
mod pipeline;
mod resample;
mod spatial;
mod voxels;

pub use axes::{Mirror, Rot90, TransposeAxes};
pub use filters::{BlurWidths, GaussianBlur, MedianFilter, Sharpen};
pub use intensity::{AdditiveBrightness, BrightnessContrast, Contrast, Gamma, MultiplicativeBrightness};
pub use local::{BrightnessGradient, LocalGamma};
pub use low_resolution::LowResolution;
pub use mask::{BlankRectangle, MaskOutside};
pub use noise::GaussianNoise;
pub use pipeline::{AugmentationPreset, Pipeline};
pub use spatial::{Spatial, centre_crop};
pub use voxels::blank_patch;
