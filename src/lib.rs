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

#[cfg(feature = "program")]
pub mod bench;
#[cfg(feature = "program")]
pub mod cli;
#[cfg(feature = "program")]
pub mod crossval;
#[cfg(feature = "program")]
pub mod doctor;
#[cfg(feature = "program")]
pub mod report;
#[cfg(feature = "program")]
pub mod scaling;
#[cfg(feature = "program")]
pub mod serve;

pub use nnunet_comm::distributed;
pub use nnunet_core::{fsio, math, rng, trace};
pub use nnunet_data::{augment, dataset, loader, phantom, plan, preprocess, store, work};
pub use nnunet_eval::{self as eval, postprocess};
pub use nnunet_image as image;
pub use nnunet_infer::{self as infer, ensemble};
pub use nnunet_interop as interop;
pub use nnunet_nn::{Device, backend, checkpoint, loss, model, ops, optim};
pub use nnunet_train::{self as train, config, telemetry};
#[cfg(feature = "program")]
pub use nnunet_viz::inspect;
