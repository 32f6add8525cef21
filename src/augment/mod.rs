//! From the patch the store delivers to the patch the network sees.
//!
//! A [`Pipeline`] is one [`Spatial`] transform, which cuts (and at times turns and scales) the final patch out of a
//! larger one, followed by named transforms with a probability each. A transform is a plain struct with
//! `apply(&self, &mut Patch, &mut Stream)`: everything random comes from the stream, so a sample can be replayed.
//!
//! In a [`cascade`] the previous stage's label map goes through the spatial transform and mirroring with the labels, and
//! then becomes channels of the network's input.
//!
//! To add a transform, write its file and its line in [`Pipeline::nnunet`]. The presets follow nnU-Net v2
//! (`nnUNetTrainer.get_training_transforms`); ranges and interpolation are those of batchgeneratorsv2 0.3.6.

mod blur;
mod brightness;
pub mod cascade;
mod contrast;
mod crop;
mod draw;
mod gamma;
mod low_resolution;
mod mask;
mod mirror;
mod noise;
mod pipeline;
mod resample;
mod spatial;
mod tap;
mod voxels;

pub use blur::GaussianBlur;
pub use brightness::MultiplicativeBrightness;
pub use contrast::Contrast;
pub use crop::centre_crop;
pub use gamma::Gamma;
pub use low_resolution::LowResolution;
pub use mask::MaskOutside;
pub use mirror::Mirror;
pub use noise::GaussianNoise;
pub use pipeline::Pipeline;
pub use spatial::Spatial;
pub(crate) use voxels::blank_patch;
