//! Data of a training run: from a folder of raw images to augmented batches.
//!
//! The modules follow the path of the data; each one uses only those above it and [`store`]:
//!
//! 1. [`dataset`]: a folder of images and labels becomes a [`Dataset`](dataset::Dataset) with a
//!    [`Fingerprint`](dataset::Fingerprint) and cross-validation splits. [`phantom`] generates such folders for tests.
//! 2. [`plan`]: the fingerprint becomes [`Plans`](plan::Plans): spacing, patch size, batch size and network of each
//!    configuration.
//! 3. [`preprocess`]: cases are cropped, normalized, resampled and written to the [`store`].
//! 4. [`store`]: [`CaseStore`](store::CaseStore) gives random access to boxes of the preprocessed cases.
//! 5. [`augment`]: a [`Pipeline`](augment::Pipeline) of random transforms turns a box into a patch for the network.
//! 6. [`loader`]: a [`Loader`](loader::Loader) reads and augments patches on worker threads and delivers
//!    [`Batch`](loader::Batch)es in order.
//!
//! [`work`] names the files in the folders of a dataset and its runs.
//!
//! Formats and algorithms follow nnU-Net v2, whose files are read and written as they are. All random numbers derive
//! from a seed and an index, so the batches depend neither on the number of ranks and threads nor on their speed. Arrays
//! are in C order, `(channel, z, y, x)`; spacing is `(z, y, x)` in mm; 2D data has a z extent of 1.
//!
//! # Example
//!
//! ```
//! use nnunet_data::dataset::{Dataset, extract_fingerprint};
//! use nnunet_data::phantom;
//! use nnunet_data::plan::{PlannerOptions, plan};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! phantom::generate(folder.path(), 4, 0, 1)?;
//!
//! let dataset = Dataset::open(folder.path())?;
//! let fingerprint = extract_fingerprint(&dataset)?;
//! let plans = plan(&dataset.name, &dataset.json, &fingerprint, &PlannerOptions::default())?;
//!
//! let configuration = plans.configuration("3d_fullres")?;
//! println!("{} cases, patches of {:?} voxels", dataset.cases.len(), configuration.patch_size);
//! assert_eq!(configuration.patch_size, [48, 48, 48]);
//! # Ok(())
//! # }
//! ```

pub mod augment;
pub mod dataset;
pub mod loader;
pub mod phantom;
pub mod plan;
pub mod preprocess;
pub mod store;
pub mod work;
