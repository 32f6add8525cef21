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
//! 7. [`interop`]: networks and preprocessed cases of nnU-Net v2 come in, networks go out to it and to other programs.
//! 8. [`dist`]: gradients are averaged over the ranks; [`optim`] turns them into new weights.
//! 9. [`train`]: the loop that ties 5 to 8 together, validates, and leaves [`checkpoint`]s; [`telemetry`] tells how it goes,
//!    [`trace`] where the time of a step goes.
//! 10. [`infer`]: a checkpoint and an image become a label map in the image's own geometry.
//! 11. [`serve`]: the same over HTTP, for programs that send images.
//! 12. [`eval`]: label maps become Dice and `summary.json`; [`ensemble`] averages predictions, [`postprocess`] tidies them,
//!     and [`crossval`] finds out which of them to trust with new images.
//! 13. [`inspect`]: what is in a case, in words, in numbers and in a picture.
//! 14. [`report`]: what a run has left in its files, on a terminal and as a page to read.
//! 15. [`scaling`]: how fast all this is on how many ranks, measured and predicted.
//! 16. [`bench`]: how fast each part is alone, next to what the machine can do at most.
//!
//! # Conventions
//!
//! Arrays are C-order `(channel, z, y, x)`, spacing is `(z, y, x)` in mm. A 2D configuration is a 3D one whose z extent
//! is 1, everywhere in memory; only files (plans, PNG) know two dimensions. Images are `f32`, labels `i16`.

pub mod augment;
pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod crossval;
#[cfg(feature = "nccl")]
mod cuda;
pub mod dataset;
pub mod dist;
pub mod doctor;
pub mod ensemble;
pub mod eval;
pub mod fsio;
mod http;
pub mod image;
pub mod infer;
pub mod inspect;
pub mod interop;
pub mod loader;
pub mod loss;
pub mod math;
pub mod model;
pub mod ops;
pub mod optim;
pub mod phantom;
pub mod plan;
pub mod postprocess;
pub mod preprocess;
pub mod report;
pub mod rng;
pub mod scaling;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod trace;
pub mod train;
