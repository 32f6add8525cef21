//! Images: voxels with a place in the world, their files, and resampling.
//!
//! [`read_volume`] and [`write_labels`] pick the format from the file name; everything else in the crate sees only
//! [`Volume`] and [`LabelMap`].

mod volume;

pub use volume::{Geometry, LabelMap, Volume};
