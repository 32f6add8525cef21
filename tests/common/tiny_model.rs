//! Models with networks that compute in milliseconds, and images for them.
#![allow(dead_code)]

use std::path::Path;

use ndarray::Array4;
use nnunet_dist::backend::CpuInference;
use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist::dataset::{Dataset, DatasetJson, extract_fingerprint};
use nnunet_dist::image::{Geometry, Volume};
use nnunet_dist::model::{ModelDescription, UNet};
use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::plan::{PlannerOptions, Plans, plan};
use serde_json::Value;

use super::plans::shrink;

/// Plans for a phantom dataset, changed by `edit`, with a network of two stages and a patch size of 16 voxels.
pub fn model(configuration: &str, edit: impl FnOnce(&mut Value, &mut DatasetJson)) -> ModelDescription {
    let raw = tempfile::tempdir().unwrap();
    PhantomOptions { train_cases: 2, test_cases: 0, shape: [20, 24, 20], seed: 3 }.generate(raw.path()).unwrap();
    let mut dataset = Dataset::open(raw.path()).unwrap();
    let fingerprint = extract_fingerprint(&dataset).unwrap();
    let plans = plan("phantom", &dataset.json, &fingerprint, &PlannerOptions::default()).unwrap();
    let mut plans = serde_json::to_value(plans).unwrap();
    shrink(&mut plans["configurations"][configuration]);
    edit(&mut plans, &mut dataset.json);
    let plans: Plans = serde_json::from_value(plans).unwrap();
    ModelDescription { plans, dataset: dataset.json, configuration: configuration.into(), mirror_axes: vec![1, 2] }
}

/// An untrained network.
pub fn network(model: &ModelDescription, seed: u64) -> UNet<CpuInference> {
    UNet::new(model.network_spec().unwrap(), seed, &Default::default())
}

/// Writes the checkpoint of an untrained network.
pub fn write_checkpoint(path: &Path, model: &ModelDescription, seed: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let weights = network(model, seed).state();
    SavedModel { description: model.clone(), weights }.write(path).unwrap();
}

/// An image with structure everywhere, except for `border` empty voxels on all sides.
pub fn image([z, y, x]: [usize; 3], border: usize, geometry: Geometry) -> Volume {
    let mut data = Array4::zeros((1, z, y, x));
    let wave =
        |k: usize, j: usize, i: usize| 200.0 + 100.0 * (k as f32 * 0.9).sin() * (j as f32 * 0.5).cos() + i as f32;
    for ((_, k, j, i), value) in data.indexed_iter_mut() {
        let inside = |at: usize, extent: usize| (border..extent - border).contains(&at);
        if inside(k, z) && inside(j, y) && inside(i, x) {
            *value = wave(k, j, i);
        }
    }
    Volume { data, geometry }
}

/// Anisotropic voxels, rotated about z and then about x: no image axis is parallel to a world axis.
pub fn oblique() -> Geometry {
    let ((s, c), (t, d)) = (0.4f64.sin_cos(), 0.3f64.sin_cos());
    Geometry {
        spacing: [2.5, 0.8, 1.1],
        origin: [-40.0, 12.5, 99.0],
        direction: [[c, -s, 0.0], [d * s, d * c, -t], [t * s, t * c, d]],
        ..Geometry::default()
    }
}
