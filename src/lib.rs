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
