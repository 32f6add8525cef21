//! The data of a training: from a folder of images to augmented batches.

pub mod augment;
pub mod dataset;
pub mod loader;
pub mod phantom;
pub mod plan;
pub mod preprocess;
pub mod store;
pub mod work;
