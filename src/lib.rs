//! nnU-Net trained across many GPUs and nodes.
//!
//! # The way of one voxel
//!
//! Read the modules in this order; each arrow is one function call in one place, and no module reaches backwards.
//!
//! 1. [`image`]: a file becomes a [`image::Volume`] (voxels with spacing, origin and direction).
//! 2. [`dataset`]: a folder of files becomes cases; validation, fingerprint and cross-validation splits.
//! 3. [`plan`]: the fingerprint becomes [`plan::Plans`]: spacing, patch size, network topology, batch size.
//! 4. [`preprocess`]: a case is cropped, normalised, resampled and written to the [`store`].
//! 5. [`loader`]: worker threads cut patches out of the store and [`augment`] them into batches.
//! 6. [`model`]: the U-Net, built from plans on the operations of [`ops`]; [`loss`] gives loss and gradient.
//! 7. [`dist`]: gradients are averaged over the ranks; [`optim`] turns them into new weights.
//! 8. [`train`]: the loop that ties 5 to 7 together, validates and writes checkpoints.
//! 9. [`infer`]: a checkpoint and an image become a label map in the image's own geometry.
//! 10. [`eval`]: label maps become Dice and `summary.json`.
//! 11. [`inspect`]: what is in a case, in words, in numbers and in a picture.
//! 12. [`scaling`]: how fast all this is on how many ranks, measured and predicted.
//! 13. [`bench`]: how fast each part is alone, next to what the machine can do at most.
//!
//! # Conventions
//!
//! Arrays are C-order `(channel, z, y, x)`, spacing is `(z, y, x)` in mm. A 2D configuration is a 3D one whose z extent
//! is 1, everywhere in memory; only files (plans, PNG) know two dimensions. Images are `f32`, labels `i16`.

pub mod augment;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod config;
#[cfg(feature = "nccl")]
mod cuda;
pub mod dataset;
pub mod dist;
pub mod doctor;
pub mod eval;
pub mod fsio;
pub mod image;
pub mod infer;
pub mod inspect;
pub mod loader;
pub mod loss;
pub mod math;
pub mod model;
pub mod ops;
pub mod optim;
pub mod phantom;
pub mod plan;
pub mod preprocess;
pub mod rng;
pub mod scaling;
pub mod store;
pub mod telemetry;
pub mod train;
