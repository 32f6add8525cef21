//! Store of generated cases, for benchmarks without a dataset.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array3, Array4};
use rand::Rng;
use rand_distr::StandardNormal;
use tempfile::TempDir;

use nnunet_core::rng::{Purpose, stream};
use nnunet_data::store::{CaseProperties, NativeStore, PreprocessedCase, StoreError, write_case};
use nnunet_image::Geometry;

/// Voxel locations stored per class; far fewer than a phantom has.
const LOCATIONS: usize = 1000;

/// A native store in a temporary folder, which is deleted on drop.
pub struct GeneratedStore {
    /// The store, memory-mapped.
    pub store: Arc<NativeStore>,
    folder: TempDir,
}

impl GeneratedStore {
    /// Writes `cases` cases with this number of `channels` and shape `(z, y, x)`: noise added to two ellipsoids of
    /// classes 1 and 2.
    ///
    /// # Errors
    /// Returns an error if the temporary folder cannot be written.
    pub fn new(cases: usize, channels: usize, shape: [usize; 3]) -> Result<Self, StoreError> {
        let fail = |error| StoreError { path: std::env::temp_dir(), defect: format!("cannot create it: {error}") };
        let folder = tempfile::tempdir().map_err(fail)?;
        for number in 0..cases {
            write_case(folder.path(), &format!("generated_{number:03}"), &case(channels, shape, number as u64))?;
        }
        Ok(Self { store: Arc::new(NativeStore::open(folder.path())?), folder })
    }

    /// Path of the store.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn case(channels: usize, shape: [usize; 3], number: u64) -> PreprocessedCase {
    let mut rng = stream(1, Purpose::Phantom, 0, number);
    let labels = Array3::from_shape_fn(shape, |(z, y, x)| label([z, y, x], shape));
    let [z, y, x] = shape;
    let data = Array4::from_shape_fn((channels, z, y, x), |(_, z, y, x)| {
        f32::from(labels[[z, y, x]]) + rng.sample::<f32, _>(StandardNormal)
    });
    let mut class_locations = BTreeMap::<i16, Vec<[u32; 3]>>::new();
    for ((z, y, x), &label) in labels.indexed_iter().filter(|(_, label)| **label > 0) {
        let voxels = class_locations.entry(label).or_default();
        if voxels.len() < LOCATIONS {
            voxels.push([z as u32, y as u32, x as u32]);
        }
    }
    let properties = CaseProperties {
        geometry: Geometry::default(),
        transpose_forward: [0, 1, 2],
        shape_before_cropping: shape,
        bbox_used_for_cropping: shape.map(|extent| [0, extent]),
        shape_after_cropping_and_before_resampling: shape,
        shape_after_resampling: shape,
        spacing_after_resampling: [1.0; 3],
        class_locations,
    };
    PreprocessedCase { data, labels: Some(labels), properties }
}

/// Two ellipsoids side by side along y, in coordinates from -1 to 1.
fn label(at: [usize; 3], shape: [usize; 3]) -> i16 {
    let [z, y, x]: [f64; 3] = std::array::from_fn(|axis| 2.0 * (at[axis] as f64 + 0.5) / shape[axis] as f64 - 1.0);
    let inside = |centre: f64| (z / 0.5).powi(2) + ((y - centre) / 0.3).powi(2) + (x / 0.4).powi(2) < 1.0;
    match () {
        () if inside(-0.35) => 1,
        () if inside(0.35) => 2,
        () => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nnunet_data::store::CaseStore;

    #[test]
    fn cases_hold_both_classes_where_they_say() {
        let generated = GeneratedStore::new(2, 3, [12, 20, 14]).unwrap();
        assert_eq!(generated.store.case_ids().len(), 2);
        let info = generated.store.info("generated_001").unwrap();
        assert_eq!((info.channels, info.shape), (3, [12, 20, 14]));
        assert!(info.class_locations.keys().eq(&[1, 2]));
        for (class, voxels) in &info.class_locations {
            assert!(voxels.iter().all(|voxel| label(voxel.map(|at| at as usize), info.shape) == *class));
        }
    }
}
