//! Data augmentation: turns the patch read from the store into the patch fed to the network.
//!
//! A [`Pipeline`] is one [`Spatial`] transform, which crops (and sometimes rotates and scales) the final patch from a
//! larger one, followed by named transforms with a probability each. A transform is a plain struct with `apply(&self,
//! &mut Patch, &mut Stream)`: all randomness comes from the stream, so a sample can be replayed.
//!
//! In a [`cascade`] the previous stage's label map goes through the spatial transform and mirroring together with the
//! labels, and then becomes input channels of the network.
//!
//! To add a transform, write its file and its line in a preset (`docs/how-to/add-a-transform.md`). The presets follow
//! nnU-Net v2 (`nnUNetTrainer` and `nnUNetTrainerDA5`, `get_training_transforms`) and NVIDIA's nnU-Net
//! (`dali_loader.py`); the ranges and interpolation of the first two match batchgeneratorsv2 0.3.6.

mod additive_brightness;
mod blank_rectangle;
mod blur;
mod brightness;
mod brightness_contrast;
mod brightness_gradient;
pub mod cascade;
mod contrast;
mod crop;
mod distributions;
mod gamma;
mod interpolation;
mod local;
mod local_gamma;
mod low_resolution;
mod mask;
mod median;
mod mirror;
mod noise;
mod pipeline;
mod preset;
mod resample;
mod rot90;
mod sharpen;
mod spatial;
mod voxels;

pub use additive_brightness::AdditiveBrightness;
pub use blank_rectangle::BlankRectangle;
pub use blur::{BlurWidths, GaussianBlur};
pub use brightness::MultiplicativeBrightness;
pub use brightness_contrast::BrightnessContrast;
pub use brightness_gradient::BrightnessGradient;
pub use contrast::Contrast;
pub use crop::centre_crop;
pub use gamma::Gamma;
pub use local_gamma::LocalGamma;
pub use low_resolution::LowResolution;
pub use mask::MaskOutside;
pub use median::MedianFilter;
pub use mirror::Mirror;
pub use noise::GaussianNoise;
pub use pipeline::Pipeline;
pub use preset::AugmentationPreset;
pub use rot90::{Rot90, TransposeAxes};
pub use sharpen::Sharpen;
pub use spatial::Spatial;
pub use voxels::blank_patch;
