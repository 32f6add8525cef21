//! Prediction from a checkpoint and a folder of images to label maps in each image's own geometry.

use std::fs::File;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use ndarray::{Array3, Array4, ArrayView3, Axis, s};
use ndarray_npy::NpzReader;
use nnunet_dist::Device;
use nnunet_dist::backend::CpuInference;
use nnunet_dist::dataset::{DatasetJson, LabelValue};
use nnunet_dist::distributed::Single;
use nnunet_dist::image::{Geometry, Plane, Volume, read_header, read_labels, write_volume};
use nnunet_dist::infer::{
    Blend, FolderOptions, InferError, MemoryOptions, PredictOptions, Predictor, WindowOptions, predict_folder,
};
use nnunet_dist::ops::Precision;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tiny_model::{image, model, oblique, write_checkpoint};

/// A folder with a checkpoint of an untrained network, images and predictions.
struct Bench {
    folder: TempDir,
    options: PredictOptions,
    save_probabilities: bool,
}

impl Bench {
    /// Plans for a phantom dataset, changed by `edit`, with a network of two stages and a patch size of 16 voxels.
    fn new(configuration: &str, edit: impl FnOnce(&mut Value, &mut DatasetJson)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("checkpoint");
        write_checkpoint(&checkpoint, &model(configuration, edit), 5);
        let options = PredictOptions {
            checkpoints: vec![checkpoint],
            windows: WindowOptions::default(),
            memory: MemoryOptions::default(),
            precision: Precision::Fp32,
            device: Device::Cpu,
        };
        Self { folder, options, save_probabilities: false }
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
        self.predict_from(&self.images())
    }

    fn predict_from(&self, images: &Path) -> Result<usize, InferError> {
        let folder = FolderOptions { save_probabilities: self.save_probabilities, ..FolderOptions::default() };
        let predicted = predict_folder(&[images.to_owned()], &self.output(""), &self.options, &folder, &Single)?;
        Ok(predicted.cases)
    }

    /// The program, with `output` as its output folder.
    fn command(&self, output: &Path, flags: &[&str]) -> Command {
        let mut command = Command::cargo_bin("nnunet-dist").expect("cargo builds the program before its tests");
        command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE").arg("predict").args(flags);
        command.arg("-r").arg(&self.options.checkpoints[0]).arg("-i").arg(self.images()).arg("-o").arg(output);
        command
    }

    fn labels(&self, case: &str) -> Array3<i16> {
        read_labels(&self.output(&format!("{case}.nii.gz"))).unwrap().data
    }
}

/// Probabilities `(class, z, y, x)` of an `npz` next to a label map.
fn probabilities(path: &Path) -> Array4<f32> {
    NpzReader::new(File::open(path).unwrap()).unwrap().by_name("probabilities").unwrap()
}

/// Plans with `forward` as the order of the image axes (`transpose_forward`).
fn transposed(forward: [usize; 3], backward: [usize; 3]) -> Bench {
    Bench::new("3d_fullres", |plans, _| {
        plans["transpose_forward"] = json!(forward);
        plans["transpose_backward"] = json!(backward);
    })
}

fn found(labels: ArrayView3<i16>) -> usize {
    labels.iter().filter(|label| **label > 0).count()
}

#[test]
fn the_label_map_has_the_geometry_of_the_image() {
    let bench = transposed([2, 0, 1], [1, 2, 0]);
    let inside = s![5..17, 1..27, 2..19];
    let mut lopsided = image([19, 30, 26], 0, oblique());
    let whole = std::mem::replace(&mut lopsided.data, Array4::zeros((1, 19, 30, 26)));
    lopsided.data.index_axis_mut(Axis(0), 0).slice_mut(inside).assign(&whole.index_axis(Axis(0), 0).slice(inside));
    bench.add("a", &lopsided);
    // Smaller than the window along every axis.
    bench.add("b", &image([5, 9, 8], 0, oblique()));
    assert_eq!(bench.predict().unwrap(), 2);
    for case in ["a", "b"] {
        let input = read_header(&bench.images().join(format!("{case}_0000.nii.gz"))).unwrap();
        let output = read_header(&bench.output(&format!("{case}.nii.gz"))).unwrap();
        assert_eq!((output.shape, output.geometry), (input.shape, input.geometry));
    }
    let labels = bench.labels("a");
    assert!(found(labels.slice(inside)) > 0, "an untrained network finds something");
    assert_eq!(found(labels.view()), found(labels.slice(inside)), "what was cropped away is background");
}

#[test]
fn the_label_map_has_the_format_of_the_images() {
    let plane = Plane { spacing: [0.5, 0.75], origin: [3.0, -4.0], direction: [[0.8, -0.6], [0.6, 0.8]] };
    for (ending, configuration, shape, geometry) in [
        (".mha", "3d_fullres", [9, 20, 18], oblique()),
        (".nrrd", "3d_fullres", [9, 20, 18], oblique()),
        (".tif", "3d_fullres", [9, 20, 18], Geometry { spacing: [2.5, 0.8, 1.1], ..Geometry::default() }),
        (".mha", "2d", [1, 20, 18], Geometry::from_plane(&plane)),
    ] {
        let bench = Bench::new(configuration, |_, dataset| dataset.file_ending = ending.to_owned());
        let mut volume = image(shape, 0, geometry);
        volume.data.mapv_inplace(f32::round);
        write_volume(&bench.images().join(format!("a_0000{ending}")), &volume).unwrap();
        assert_eq!(bench.predict().unwrap(), 1, "{ending}");
        let input = read_header(&bench.images().join(format!("a_0000{ending}"))).unwrap();
        let output = read_header(&bench.output(&format!("a{ending}"))).unwrap();
        assert_eq!((output.shape, &output.geometry), (input.shape, &input.geometry), "{ending}");
        assert!((input.geometry.spacing[0] - volume.geometry.spacing[0]).abs() < 1e-9, "{ending}");
    }
}

/// With `transpose_forward`, the prediction equals that of an image stored with transposed axes.
#[test]
fn transposed_plans_equal_transposed_images() {
    let forward = [2, 0, 1];
    let (transposed, plain) = (transposed(forward, [1, 2, 0]), transposed([0, 1, 2], [0, 1, 2]));
    let spacing = [1.6, 0.8, 1.1];
    let mut volume = image([14, 30, 22], 0, Geometry { spacing, ..Geometry::default() });
    volume.data.slice_mut(s![.., .., ..6, ..]).fill(0.0);
    transposed.add("a", &volume);
    let [z, y, x] = forward;
    let data = volume.data.permuted_axes([0, z + 1, y + 1, x + 1]).as_standard_layout().into_owned();
    let geometry = Geometry { spacing: forward.map(|axis| spacing[axis]), ..Geometry::default() };
    plain.add("a", &Volume { data, geometry });
    transposed.predict().unwrap();
    plain.predict().unwrap();
    let expected = plain.labels("a");
    assert!(expected.iter().any(|label| *label > 0));
    assert_eq!(transposed.labels("a").permuted_axes(forward), expected);
}

#[test]
fn probabilities_belong_to_the_labels() {
    let mut bench = Bench::new("3d_fullres", |_, _| {});
    bench.save_probabilities = true;
    bench.options.windows = WindowOptions { mirror: false, overlap: 0.25, blend: Blend::Constant };
    bench.add("a", &image([20, 21, 22], 2, oblique()));
    bench.predict().unwrap();
    let (labels, probabilities) = (bench.labels("a"), probabilities(&bench.output("a.npz")));
    assert_eq!(probabilities.dim(), (3, 20, 21, 22));
    for (voxel, classes) in labels.iter().zip(probabilities.lanes(Axis(0))) {
        assert!((classes.sum() - 1.0).abs() < 1e-5);
        assert!(classes.iter().all(|p| *p <= classes[*voxel as usize]));
    }
}

#[test]
fn flags_reach_the_windows() {
    let mut bench = Bench::new("3d_fullres", |_, _| {});
    bench.save_probabilities = true;
    bench.add("a", &image([26, 20, 18], 0, Geometry::default()));
    let default = WindowOptions::default();
    // nnU-Net's flags for the same options.
    for (flags, same) in [
        (&["--step-size", "0.75"][..], &["--overlap", "0.25"][..]),
        (&["--step_size", "1", "--disable_tta"], &["--overlap", "0", "--no-tta"]),
    ] {
        let both = [("theirs", flags), ("ours", same)].map(|(name, flags)| {
            let folder = bench.output(name);
            bench.command(&folder, flags).arg("--save_probabilities").assert().success();
            probabilities(&folder.join("a.npz"))
        });
        assert_eq!(both[0], both[1], "{flags:?}");
    }
    let variants: [(&[&str], WindowOptions); 4] = [
        (&[], default),
        (&["--no-tta"], WindowOptions { mirror: false, ..default }),
        (&["--overlap", "0.25"], WindowOptions { overlap: 0.25, ..default }),
        (&["--blend", "constant"], WindowOptions { blend: Blend::Constant, ..default }),
    ];
    let mut seen: Vec<Array4<f32>> = Vec::new();
    for (flags, windows) in variants {
        let folder = bench.output("command");
        let mut command = bench.command(&folder, flags);
        command.arg("--save-probabilities").assert().success().stdout(starts_with("1 cases in "));
        bench.options.windows = windows;
        bench.predict().unwrap();
        let [by_flag, by_option] = [folder.join("a.npz"), bench.output("a.npz")].map(|path| probabilities(&path));
        let differ = |other: &Array4<f32>| (other - &by_flag).iter().any(|difference| difference.abs() > 1e-5);
        assert!(!differ(&by_option), "{flags:?}");
        assert!(seen.iter().all(differ), "{flags:?} changes nothing");
        seen.push(by_flag);
    }
    for bad in ["1", "-0.1", "half"] {
        bench.command(&bench.output(""), &[&format!("--overlap={bad}")]).assert().code(2).stderr(contains("below 1"));
    }
    for bad in ["0", "1.1"] {
        bench.command(&bench.output(""), &[&format!("--step-size={bad}")]).assert().code(2).stderr(contains("above 0"));
    }
}

#[test]
fn a_bad_image_does_not_stop_the_others() {
    let bench = Bench::new("3d_fullres", |_, _| {});
    let mut volume = image([18, 18, 18], 0, Geometry::default());
    for case in ["a", "b", "c"] {
        bench.add(case, &volume);
    }
    let path = bench.images().join("b_0000.nii.gz");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    volume.data[[0, 3, 4, 5]] = f32::NAN;
    bench.add("d", &volume);
    bench.add("e", &Volume { data: Array4::zeros((2, 18, 18, 18)), geometry: Geometry::default() });
    let failed = contains("error: 3 of 5 cases failed: b: ").and(contains("truncated"));
    let failed = failed.and(contains("d_0000.nii.gz: NaN")).and(contains("e_0000.nii.gz: has 2 channels, expected 1"));
    bench.command(&bench.output(""), &[]).assert().code(3).stderr(failed);
    let written = std::fs::read_dir(bench.output("")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut written: Vec<_> = written.map(|name| name.into_string().unwrap()).collect();
    written.sort();
    assert_eq!(written, ["a.nii.gz", "c.nii.gz", "dataset.json", "plans.json"]);
}

/// Without foreground, nothing is cropped and nothing divided by 0.
#[test]
fn an_empty_image_is_predicted() {
    let mut bench = Bench::new("3d_fullres", |_, _| {});
    bench.save_probabilities = true;
    bench.add("a", &Volume { data: Array4::zeros((1, 17, 12, 20)), geometry: Geometry::default() });
    bench.predict().unwrap();
    assert_eq!(bench.labels("a").dim(), (17, 12, 20));
    assert!(probabilities(&bench.output("a.npz")).iter().all(|probability| probability.is_finite()));
}

#[test]
fn a_2d_network_goes_through_a_stack_slice_by_slice() {
    let bench = Bench::new("2d", |_, _| {});
    bench.add("a", &image([4, 20, 24], 0, oblique()));
    bench.predict().unwrap();
    let input = read_header(&bench.images().join("a_0000.nii.gz")).unwrap();
    let output = read_header(&bench.output("a.nii.gz")).unwrap();
    assert_eq!((output.shape, output.geometry), (input.shape, input.geometry));
}

#[test]
fn regions_become_the_labels_of_their_order() {
    let mut bench = Bench::new("3d_fullres", |_, dataset| {
        let background = LabelValue::Class(0);
        let (whole, core) = (LabelValue::Region(vec![1, 2]), LabelValue::Region(vec![2]));
        let labels = [("background", background), ("whole", whole), ("core", core)];
        dataset.labels = labels.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        dataset.regions_class_order = Some(vec![7, 9]);
    });
    bench.add("a", &image([20, 20, 20], 0, Geometry::default()));
    bench.save_probabilities = true;
    bench.predict().unwrap();
    let (labels, probabilities) = (bench.labels("a"), probabilities(&bench.output("a.npz")));
    assert_eq!(probabilities.dim(), (2, 20, 20, 20));
    for (label, regions) in labels.iter().zip(probabilities.lanes(Axis(0))) {
        // The core is inside the whole and takes precedence.
        let expected = if regions[1] > 0.5 { 9 } else { 7 * i16::from(regions[0] > 0.5) };
        assert_eq!(*label, expected, "{regions}");
    }
    assert!(labels.iter().any(|label| *label > 0));
}

/// Colors are the channels of one file, and the label map is a file of the same kind.
#[test]
fn a_photograph_becomes_a_label_map_of_its_kind() {
    let bench = Bench::new("2d", |plans, dataset| {
        dataset.file_ending = ".png".into();
        dataset.channel_names =
            ["R", "G", "B"].iter().enumerate().map(|(i, name)| (i.to_string(), (*name).into())).collect();
        let configuration = &mut plans["configurations"]["2d"];
        configuration["normalization_schemes"] = json!(vec!["RGBTo01Normalization"; 3]);
        configuration["use_mask_for_norm"] = json!(vec![false; 3]);
        configuration["spacing"] = json!([1.0, 1.0]);
    });
    let photograph = |(c, _, y, x): (usize, usize, usize, usize)| ((c * 70 + y * 9 + x * 5) % 256) as f32;
    let photograph = Volume { data: Array4::from_shape_fn((3, 1, 33, 21), photograph), geometry: Geometry::default() };
    write_volume(&bench.images().join("a_0000.png"), &photograph).unwrap();
    bench.predict().unwrap();
    let labels = read_labels(&bench.output("a.png")).unwrap().data;
    assert_eq!(labels.dim(), (1, 33, 21));
    assert!(labels.iter().any(|label| *label > 0) && labels.iter().all(|label| (0..3).contains(label)));
}

/// The prediction is the same as for the file.
#[test]
fn an_array_in_memory_is_predicted_like_a_file() {
    let mut bench = Bench::new("3d_fullres", |_, _| {});
    let spacing = [2.0, 0.9, 1.2];
    let volume = image([18, 26, 21], 2, Geometry { spacing, ..Geometry::default() });
    bench.add("a", &volume);
    bench.save_probabilities = true;
    bench.predict().unwrap();
    let predictor = Predictor::<CpuInference>::with_options(&bench.options, Default::default()).unwrap();
    let found = predictor.predict_array(volume.data.view(), spacing, true).unwrap();
    assert!(found.labels.data.iter().any(|label| *label > 0));
    assert_eq!(found.labels.data, bench.labels("a"));
    assert_eq!(found.probabilities.unwrap(), probabilities(&bench.output("a.npz")));
    assert!(predictor.predict_array(volume.data.view(), spacing, false).unwrap().probabilities.is_none());

    let refuse = |image: &Array4<f32>, spacing, parts: &[&str]| {
        assert_names(predictor.predict_array(image.view(), spacing, false).unwrap_err(), parts);
    };
    refuse(&Array4::zeros((1, 4, 0, 4)), spacing, &["no voxels"]);
    refuse(&Array4::zeros((2, 4, 4, 4)), spacing, &["has 2 channels, but the plans have 1"]);
    refuse(&Array4::from_elem((1, 4, 4, 4), f32::NAN), spacing, &["NaN", "64 voxels"]);
    refuse(&Array4::zeros((1, 4, 4, 4)), [1.0, 0.0, 1.0], &["[1.0, 0.0, 1.0] mm"]);
}

fn assert_names(error: InferError, parts: &[&str]) {
    let error = error.to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn errors_name_the_case_or_file() {
    let mut bench = Bench::new("3d_fullres", |_, dataset| {
        dataset.channel_names.insert("1".into(), "T2".into());
    });
    bench.add("a", &image([18, 18, 18], 0, Geometry::default()));
    assert_names(bench.predict().unwrap_err(), &["a", "0001"]);
    assert_names(bench.predict_from(Path::new("/nowhere")).unwrap_err(), &["/nowhere", "No such file"]);
    bench.options.checkpoints = vec![bench.folder.path().join("checkpoint_best")];
    assert_names(bench.predict().unwrap_err(), &["checkpoint_best", "train"]);
}

#[test]
fn an_unusable_output_folder_is_named() {
    let bench = Bench::new("3d_fullres", |_, _| {});
    bench.add("a", &image([18, 18, 18], 0, Geometry::default()));
    let file = bench.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for output in [file.clone(), file.join("below")] {
        bench.command(&output, &[]).assert().code(3).stderr(contains("file").and(contains("cannot be written")));
    }
}
