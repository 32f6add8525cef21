//! The networks of several folds predict together.

use std::fs::File;
use std::path::Path;

use assert_cmd::Command;
use ndarray::{Array4, Axis};
use ndarray_npy::NpzReader;
use nnunet_dist::backend::CpuInference;
use nnunet_dist::image::{Geometry, read_labels, write_volume};
use nnunet_dist::infer::{Blend, Predictor, SlidingWindow, WindowOptions};
use nnunet_dist::model::ModelDescription;
use nnunet_dist::work::{FoldId, WorkDir};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tiny_model::{image, model, network, write_checkpoint};

const CONFIGURATION: &str = "3d_fullres";
const SPACING: [f64; 3] = [1.0; 3];

/// A model that passes images of [`SPACING`] to its networks unchanged.
fn plain_model(edit: impl FnOnce(&mut Value)) -> ModelDescription {
    model(CONFIGURATION, |plans, _| {
        plans["transpose_forward"] = json!([0, 1, 2]);
        plans["transpose_backward"] = json!([0, 1, 2]);
        plans["configurations"][CONFIGURATION]["spacing"] = json!(SPACING);
        edit(plans);
    })
}

/// A work folder with a run per fold, each with a network seeded by the fold number, and an image.
struct Folds {
    folder: TempDir,
    model: ModelDescription,
}

impl Folds {
    fn new(folds: usize) -> Self {
        let model = plain_model(|_| {});
        let folds_of = Self { folder: tempfile::tempdir().unwrap(), model };
        (0..folds).for_each(|fold| folds_of.add(FoldId::Number(fold), fold as u64));
        let volume = image([20, 26, 18], 0, Geometry { spacing: SPACING, ..Geometry::default() });
        write_volume(&folds_of.folder.path().join("images/a_0000.nii.gz"), &volume).unwrap();
        folds_of
    }

    fn work(&self) -> WorkDir {
        WorkDir::new(self.folder.path())
    }

    fn add(&self, fold: FoldId, seed: u64) {
        write_checkpoint(&self.work().run(CONFIGURATION, fold).checkpoint_latest(), &self.model, seed);
    }

    fn command(&self, output: &str) -> Command {
        let mut command = Command::cargo_bin("nnunet-dist").unwrap();
        command.env_remove("RUST_LOG").arg("predict").arg("-i").arg(self.folder.path().join("images"));
        command.arg("-o").arg(self.folder.path().join(output)).arg("--save-probabilities");
        command
    }

    fn by_work(&self, output: &str, folds: &[&str]) -> Command {
        let mut command = self.command(output);
        command.arg("-w").arg(self.folder.path()).args(["-c", CONFIGURATION]);
        if !folds.is_empty() {
            command.arg("-f").args(folds);
        }
        command
    }

    fn probabilities(&self, output: &str) -> Array4<f32> {
        let path = self.folder.path().join(output).join("a.npz");
        NpzReader::new(File::open(path).unwrap()).unwrap().by_name("probabilities").unwrap()
    }

    /// Logits `(class, z, y, x)` of each fold's network.
    fn logits(&self, folds: usize) -> Vec<Array4<f32>> {
        let networks: Vec<_> = (0..folds as u64).map(|seed| network(&self.model, seed)).collect();
        let device = Default::default();
        let predictor =
            Predictor::new(networks[0].clone(), &self.model, WindowOptions::default(), Default::default()).unwrap();
        let image = image([20, 26, 18], 0, Geometry { spacing: SPACING, ..Geometry::default() });
        let case = nnunet_dist::dataset::Case { id: "a".into(), image, label: None };
        let data = predictor.preprocess(&case).unwrap().data;
        assert_eq!(data.dim(), (1, 20, 26, 18), "neither cropped nor resampled");
        let mirror_axes = self.model.mirror_axes.clone();
        let sliding = SlidingWindow { window: [16; 3], step: 0.5, blend: Blend::Gaussian, mirror_axes };
        networks.iter().map(|network| sliding.logits::<CpuInference>(network, data.view(), &device)).collect()
    }
}

fn softmax(mut logits: Array4<f32>) -> Array4<f32> {
    for mut voxel in logits.lanes_mut(Axis(0)) {
        voxel.mapv_inplace(f32::exp);
        let sum = voxel.sum();
        voxel.mapv_inplace(|value| value / sum);
    }
    logits
}

fn mean(arrays: &[Array4<f32>]) -> Array4<f32> {
    let sum = arrays.iter().fold(Array4::zeros(arrays[0].raw_dim()), |sum, array| sum + array);
    sum / arrays.len() as f32
}

fn largest_difference(one: &Array4<f32>, other: &Array4<f32>) -> f32 {
    assert_eq!(one.dim(), other.dim());
    (one - other).iter().fold(0.0, |largest, difference| largest.max(difference.abs()))
}

/// nnU-Net averages the logits, not the probabilities.
#[test]
fn logits_of_all_folds_are_averaged() {
    let folds = Folds::new(3);
    folds.by_work("out", &["0", "1", "2"]).assert().success();
    let (found, logits) = (folds.probabilities("out"), folds.logits(3));
    assert!(largest_difference(&found, &softmax(mean(&logits))) < 1e-5);
    let mean_of_probabilities = mean(&logits.iter().cloned().map(softmax).collect::<Vec<_>>());
    assert!(largest_difference(&found, &mean_of_probabilities) > 1e-3);
    assert!(largest_difference(&found, &softmax(logits[0].clone())) > 1e-2);
    let labels = read_labels(&folds.folder.path().join("out/a.nii.gz")).unwrap().data;
    for (label, classes) in labels.iter().zip(found.lanes(Axis(0))) {
        assert!(classes.iter().all(|p| *p <= classes[*label as usize]));
    }
}

#[test]
fn folds_can_be_given_in_every_way() {
    let folds = Folds::new(5);
    folds.add(FoldId::All, 9);
    folds.by_work("default", &[]).assert().success();
    folds.by_work("five", &["0", "1", "2", "3", "4"]).assert().success();
    assert_eq!(folds.probabilities("default"), folds.probabilities("five"));

    let runs = folds.work().runs(CONFIGURATION);
    let by_run = |output: &str, paths: &[&str], rest: &[&str]| {
        let mut command = folds.command(output);
        command.arg("-r").args(paths.iter().map(|path| runs.join(path))).args(rest);
        command
    };
    folds.by_work("two", &["1", "4"]).assert().success();
    by_run("runs", &["fold_1", "fold_4/checkpoint_latest"], &[]).assert().success();
    by_run("model", &[""], &["--fold", "1", "4"]).assert().success();
    assert_eq!(folds.probabilities("two"), folds.probabilities("runs"));
    assert_eq!(folds.probabilities("two"), folds.probabilities("model"));
    assert!(largest_difference(&folds.probabilities("two"), &folds.probabilities("five")) > 1e-3);

    folds.by_work("all", &["all"]).arg("--chk=checkpoint_final.pth").assert().success();
    by_run("alone", &["fold_all"], &[]).assert().success();
    assert_eq!(folds.probabilities("all"), folds.probabilities("alone"));
}

#[test]
fn incompatible_networks_are_refused() {
    let folds = Folds::new(2);
    let alien = |name: &str, model: ModelDescription| {
        let path = folds.folder.path().join(name);
        write_checkpoint(&path, &model, 7);
        path
    };
    let refuse = |path: &Path, difference: &str| {
        let mut command = folds.command("out");
        command.arg("-r").arg(folds.work().run(CONFIGURATION, FoldId::Number(0)).root()).arg(path);
        let named = contains(path.to_str().unwrap()).and(contains(format!("in the {difference};")));
        command.assert().code(3).stderr(named);
    };
    let in_plans = |edit: &dyn Fn(&mut Value)| plain_model(|plans| edit(plans));
    let in_configuration = |key: &str, value: Value| {
        in_plans(&|plans| {
            *plans["configurations"][CONFIGURATION].pointer_mut(key).unwrap() = value.clone();
        })
    };
    refuse(&alien("spacing", in_configuration("/spacing", json!([1, 1, 2]))), "spacing");
    let features = in_configuration("/architecture/arch_kwargs/features_per_stage", json!([4, 12]));
    refuse(&alien("features", features), "architecture");
    refuse(&alien("dataset", in_plans(&|plans| plans["dataset_name"] = json!("Other"))), "dataset");

    folds
        .by_work("out", &[])
        .assert()
        .code(3)
        .stderr(contains("fold_2/checkpoint_latest").and(contains("available: 0 1")));
    let mut command = folds.command("out");
    command.arg("-r").arg(folds.work().run(CONFIGURATION, FoldId::Number(0)).root()).args(["-f", "0"]);
    command.assert().code(3).stderr(contains("contains no folds"));
    folds.command("out").assert().code(2).stderr(contains("--run"));
}
