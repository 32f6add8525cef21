//! A checkpoint and a folder of images become label maps in each image's own geometry.

use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::{Array4, Axis, s};
use ndarray_npy::NpzReader;
use nnunet_dist::backend::Cpu;
use nnunet_dist::config::Device;
use nnunet_dist::dataset::{Dataset, DatasetJson, LabelValue, extract_fingerprint};
use nnunet_dist::image::{Geometry, Volume, read_header, read_labels, write_volume};
use nnunet_dist::infer::{Blend, InferError, PredictOptions, WindowOptions, predict_folder};
use nnunet_dist::model::{ModelDescription, UNet};
use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::plan::{PlannerOptions, Plans, plan};
use nnunet_dist::train::{Checkpoint, Progress};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a checkpoint of an untrained network, and room for images and predictions.
struct Bench {
    folder: TempDir,
    options: PredictOptions,
}

impl Bench {
    /// Plans for a phantom dataset, changed by `edit`, with a network of two stages and windows of 16 voxels.
    fn new(configuration: &str, edit: impl FnOnce(&mut Value, &mut DatasetJson)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw");
        PhantomOptions { train_cases: 2, test_cases: 0, shape: [20, 24, 20], seed: 3 }.generate(&raw).unwrap();
        let dataset = Dataset::open(&raw).unwrap();
        let fingerprint = extract_fingerprint(&dataset).unwrap();
        let plans = plan("phantom", &dataset.json, &fingerprint, &PlannerOptions::default()).unwrap();

        let mut plans = serde_json::to_value(plans).unwrap();
        let mut description = dataset.json;
        shrink(&mut plans["configurations"][configuration]);
        edit(&mut plans, &mut description);
        let plans: Plans = serde_json::from_value(plans).unwrap();
        let mirror_axes = vec![1, 2];
        let model = ModelDescription { plans, dataset: description, configuration: configuration.into(), mirror_axes };
        let network = UNet::<Cpu>::new(model.network_spec().unwrap(), 5, &Default::default());
        let checkpoint = folder.path().join("checkpoint");
        let weights = network.state();
        Checkpoint { model, progress: Progress::default(), weights, optimizer: Vec::new() }.write(&checkpoint).unwrap();
        let windows = WindowOptions::default();
        let options = PredictOptions { checkpoint, windows, save_probabilities: false, device: Device::Cpu };
        Self { folder, options }
    }

    fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join("output").join(name)
    }

    fn add(&self, case: &str, volume: &Volume) {
        write_volume(&self.images().join(format!("{case}_0000.nii.gz")), volume).unwrap();
    }

    fn predict(&self) -> Result<usize, InferError> {
        predict_folder(&self.images(), &self.output(""), &self.options)
    }
}

fn shrink(configuration: &mut Value) {
    let axes = configuration["patch_size"].as_array().unwrap().len();
    configuration["patch_size"] = json!(vec![16; axes]);
    let network = &mut configuration["architecture"]["arch_kwargs"];
    network["n_stages"] = json!(2);
    network["features_per_stage"] = json!([4, 8]);
    network["kernel_sizes"] = json!([vec![3; axes], vec![3; axes]]);
    network["strides"] = json!([vec![1; axes], vec![2; axes]]);
    network["n_conv_per_stage"] = json!([1, 1]);
    network["n_conv_per_stage_decoder"] = json!([1]);
}

/// An image full of structure with `border` empty voxels all around.
fn image([z, y, x]: [usize; 3], border: usize, geometry: Geometry) -> Volume {
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

fn oblique() -> Geometry {
    let (sin, cos) = 0.4f64.sin_cos();
    Geometry {
        spacing: [2.5, 0.8, 1.1],
        origin: [-40.0, 12.5, 99.0],
        direction: [[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]],
    }
}

#[test]
fn the_label_map_lies_where_the_image_lies() {
    let bench = Bench::new("3d_fullres", |plans, _| {
        plans["transpose_forward"] = json!([1, 0, 2]);
        plans["transpose_backward"] = json!([1, 0, 2]);
    });
    bench.add("a", &image([14, 30, 26], 3, oblique()));
    // Smaller than the window along every axis.
    bench.add("b", &image([5, 9, 8], 0, oblique()));
    assert_eq!(bench.predict().unwrap(), 2);
    for case in ["a", "b"] {
        let input = read_header(&bench.images().join(format!("{case}_0000.nii.gz"))).unwrap();
        let output = read_header(&bench.output(&format!("{case}.nii.gz"))).unwrap();
        assert_eq!(output, input);
    }
    let labels = read_labels(&bench.output("a.nii.gz")).unwrap().data;
    let inside = labels.slice(s![3..11, 3..27, 3..23]);
    assert!(inside.iter().any(|label| *label > 0), "an untrained network finds something");
    let outside = labels.iter().filter(|label| **label > 0).count() - inside.iter().filter(|label| **label > 0).count();
    assert_eq!(outside, 0, "what was cropped away is background");
}

#[test]
fn probabilities_belong_to_the_labels() {
    let mut bench = Bench::new("3d_fullres", |_, _| {});
    bench.options.save_probabilities = true;
    bench.options.windows = WindowOptions { mirror: false, overlap: 0.25, blend: Blend::Constant };
    bench.add("a", &image([20, 21, 22], 2, oblique()));
    bench.predict().unwrap();
    let labels = read_labels(&bench.output("a.nii.gz")).unwrap().data;
    let mut npz = NpzReader::new(File::open(bench.output("a.npz")).unwrap()).unwrap();
    let probabilities: Array4<f32> = npz.by_name("probabilities").unwrap();
    assert_eq!(probabilities.dim(), (3, 20, 21, 22));
    for (voxel, classes) in labels.iter().zip(probabilities.lanes(Axis(0))) {
        assert!((classes.sum() - 1.0).abs() < 1e-5);
        assert!(classes.iter().all(|p| *p <= classes[*voxel as usize]));
    }
}

#[test]
fn a_bad_image_does_not_stop_the_others() {
    let bench = Bench::new("3d_fullres", |_, _| {});
    for case in ["a", "b", "c"] {
        bench.add(case, &image([18, 18, 18], 0, Geometry::default()));
    }
    let path = bench.images().join("b_0000.nii.gz");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = bench.predict().unwrap_err().to_string();
    assert!(error.starts_with("1 of 3 cases failed: b: ") && error.contains("cut short"), "{error}");
    assert!(bench.output("a.nii.gz").exists() && bench.output("c.nii.gz").exists());
    let written: Vec<_> = std::fs::read_dir(bench.output("")).unwrap().collect();
    assert_eq!(written.len(), 2, "{written:?}");
}

#[test]
fn a_2d_network_goes_through_a_stack_slice_by_slice() {
    let bench = Bench::new("2d", |_, _| {});
    bench.add("a", &image([4, 20, 24], 0, oblique()));
    bench.predict().unwrap();
    let input = read_header(&bench.images().join("a_0000.nii.gz")).unwrap();
    assert_eq!(read_header(&bench.output("a.nii.gz")).unwrap(), input);
}

#[test]
fn regions_become_the_labels_of_their_order() {
    let bench = Bench::new("3d_fullres", |_, dataset| {
        let background = LabelValue::Class(0);
        let (whole, core) = (LabelValue::Region(vec![1, 2]), LabelValue::Region(vec![2]));
        let labels = [("background", background), ("whole", whole), ("core", core)];
        dataset.labels = labels.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        dataset.regions_class_order = Some(vec![7, 9]);
    });
    bench.add("a", &image([20, 20, 20], 0, Geometry::default()));
    bench.predict().unwrap();
    let labels = read_labels(&bench.output("a.nii.gz")).unwrap().data;
    assert!(labels.iter().all(|label| [0, 7, 9].contains(label)) && labels.iter().any(|label| *label > 0));
}

fn assert_names(error: InferError, parts: &[&str]) {
    let error = error.to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn what_cannot_be_predicted_is_named() {
    let mut bench = Bench::new("3d_fullres", |_, dataset| {
        dataset.channel_names.insert("1".into(), "T2".into());
    });
    bench.add("a", &image([18, 18, 18], 0, Geometry::default()));
    assert_names(bench.predict().unwrap_err(), &["a", "0001"]);
    assert_names(predict_folder(Path::new("/nowhere"), &bench.output(""), &bench.options).unwrap_err(), &["/nowhere"]);
    bench.options.checkpoint = bench.folder.path().join("checkpoint_best");
    assert_names(bench.predict().unwrap_err(), &["checkpoint_best", "train"]);
}
