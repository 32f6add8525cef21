//! nnU-Net trained across many GPUs and nodes.
//!
//! # Data flow
//!
//! Read the modules in this order. Each step is one function call in one place, and no module depends on a later one.
//!
//! 1. [`image`]: reads a file into an [`image::Volume`] (voxels with spacing, origin and direction).
//! 2. [`dataset`]: turns a folder of files into cases; validation, fingerprint and cross-validation splits.
//! 3. [`plan`]: derives [`plan::Plans`] from the fingerprint: spacing, patch size, network topology, batch size.
//! 4. [`preprocess`]: crops, normalizes and resamples a case and writes it to the [`store`].
//! 5. [`loader`]: worker threads sample patches from the store, [`augment`] them and assemble batches.
//! 6. [`model`]: the U-Net, built from the plans on the operations of [`ops`]; [`loss`] computes loss and gradient.
//! 7. [`interop`]: imports networks and preprocessed cases of nnU-Net v2; exports networks to it and to other programs.
//! 8. [`dist`]: averages gradients over the ranks; [`optim`] updates the weights.
//! 9. [`train`]: the training loop around 5 to 8, validation and [`checkpoint`]s; [`telemetry`] reports metrics,
//!    [`trace`] records a timeline of each step.
//! 10. [`infer`]: predicts a label map in the image's own geometry from a checkpoint and an image.
//! 11. [`serve`]: inference over HTTP.
//! 12. [`eval`]: computes Dice and `summary.json` from label maps; [`ensemble`] averages predictions, [`postprocess`]
//!     removes small components, and [`crossval`] selects the best configuration by cross-validation.
//! 13. [`inspect`]: shows the contents of a case as text, statistics and a picture.
//! 14. [`report`]: reads the files of a run and shows them in a terminal and as an HTML page.
//! 15. [`scaling`]: measures throughput for several numbers of ranks and predicts it for more.
//! 16. [`bench`]: benchmarks of single parts, relative to the peak of the machine.
//!
//! # Conventions
//!
//! Arrays are C-order `(channel, z, y, x)`, spacing is `(z, y, x)` in mm. In memory, a 2D configuration is a 3D one
//! with a z extent of 1; only files (plans, PNG) are two-dimensional. Images are `f32`, labels `i16`.

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
