//! Evaluates folders of label maps as nnU-Net does, from files to `summary.json` and the command's output.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use ndarray::Array3;
use nnunet_dist::cli::exit;
use nnunet_dist::dataset::LabelValue;
use nnunet_dist::eval::{Classes, FolderOptions, Measures, Pair, Summary, evaluate_files, evaluate_folder};
use nnunet_dist::image::{Geometry, LabelMap, write_labels};
use predicates::prelude::predicate::str::contains;
use serde_json::Value;
use tempfile::TempDir;

use crate::skip::skip;

const SHAPE: [usize; 3] = [2, 3, 4];

/// A dataset folder with `labelsTr`, and predictions next to it.
struct Folders {
    root: TempDir,
}

impl Folders {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn predictions(&self) -> PathBuf {
        self.root.path().join("predictions")
    }

    fn truth(&self) -> PathBuf {
        self.root.path().join("dataset/labelsTr")
    }

    /// Adds a case by the labels of its first voxels; the others are background.
    fn case(self, name: &str, truth: &[i16], predicted: &[i16]) -> Self {
        write(&self.truth().join(name), SHAPE, truth);
        write(&self.predictions().join(name), SHAPE, predicted);
        self
    }

    fn dataset_json(self, labels: &str) -> Self {
        let text = format!(r#"{{"labels": {labels}, "file_ending": ".nii.gz"}}"#);
        std::fs::write(self.root.path().join("dataset/dataset.json"), text).unwrap();
        self
    }

    fn evaluate(&self) -> anyhow::Result<Summary> {
        Ok(evaluate_folder(&self.predictions(), &self.truth(), &FolderOptions::default())?)
    }

    /// The one-line error and the exit code.
    fn failure(&self) -> (String, u8) {
        let error = self.evaluate().expect_err("not comparable");
        (exit::one_line(&error), exit::code(&error))
    }
}

fn write(path: &Path, shape: [usize; 3], labels: &[i16]) {
    let mut data = Array3::zeros(shape);
    data.iter_mut().zip(labels).for_each(|(voxel, &label)| *voxel = label);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    write_labels(path, &LabelMap { data, geometry: Geometry::default() }).unwrap();
}

fn two_cases() -> Folders {
    Folders::new()
        .case("b.nii.gz", &[1, 1, 1, 2, 2], &[1, 1, 2, 2, 0, 1])
        .case("a.nii.gz", &[1, 1], &[1, 1])
        .dataset_json(r#"{"background": 0, "organ": 1, "core": 2, "absent": 3}"#)
}

#[test]
fn the_summary_has_nnunets_schema_and_numbers() {
    let folders = two_cases();
    let summary = folders.evaluate().unwrap();
    let path = folders.root.path().join("summary.json");
    summary.save(&path).unwrap();
    // Python reads NaN; serde_json needs null.
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""Dice": NaN"#), "{text}");
    let json: Value = serde_json::from_str(&text.replace("NaN", "null")).unwrap();

    assert_eq!(json["metric_per_case"][0]["metrics"]["1"]["Dice"], 1.0, "cases in order of their names");
    let case = &json["metric_per_case"][1];
    assert_eq!(case["prediction_file"], folders.predictions().join("b.nii.gz").to_str().unwrap());
    assert_eq!(case["reference_file"], folders.truth().join("b.nii.gz").to_str().unwrap());
    let expected = serde_json::json!({
        "Dice": 4.0 / 6.0, "FN": 1, "FP": 1, "IoU": 0.5, "TN": 20, "TP": 2, "n_pred": 3, "n_ref": 3
    });
    assert_eq!(case["metrics"]["1"], expected);
    assert_eq!(json["metric_per_case"][0]["metrics"]["2"]["Dice"], Value::Null);
    // A case without the class does not count in its mean Dice, but counts in its mean voxel counts.
    assert_eq!(json["mean"]["2"]["Dice"], 0.5);
    assert_eq!(json["mean"]["2"]["n_ref"], 1.0);
    assert_eq!(json["mean"]["3"]["Dice"], Value::Null);
    assert_eq!(json["foreground_mean"]["Dice"], Value::Null, "class 3 is nowhere");
    assert_eq!(json["foreground_mean"]["TP"], (2.0 + 0.5) / 3.0);
    assert!((summary.mean_dice() - (5.0 / 6.0 + 0.5) / 2.0).abs() < 1e-12);
}

#[test]
fn python_reads_what_is_written() {
    let folders = two_cases();
    let path = folders.root.path().join("summary.json");
    folders.evaluate().unwrap().save(&path).unwrap();
    let script = "import json, math, sys\n\
                  s = json.load(open(sys.argv[1]))\n\
                  assert math.isnan(s['mean']['3']['Dice']) and s['mean']['2']['Dice'] == 0.5";
    match std::process::Command::new("python3").args(["-c", script]).arg(&path).status() {
        Ok(status) => assert!(status.success(), "Python rejects {}", path.display()),
        Err(error) => skip(format_args!("python3: {error}")),
    }
}

#[test]
fn regions_and_the_ignore_label_come_from_the_dataset() {
    let folders = Folders::new()
        .case("a.nii.gz", &[1, 2, 2, 3, 3], &[2, 2, 0, 1, 1])
        .dataset_json(r#"{"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}"#);
    let summary = folders.evaluate().unwrap();
    assert_eq!(summary.mean.keys().collect::<Vec<_>>(), ["(1, 2)", "2"]);
    let metrics = &summary.metric_per_case[0].metrics;
    let counts = |class: &str| [metrics[class].tp, metrics[class].fp, metrics[class].fn_, metrics[class].tn];
    assert_eq!(counts("(1, 2)"), [2, 0, 1, 19]);
    assert_eq!(counts("2"), [1, 1, 1, 19]);
}

#[test]
fn all_labels_found_are_classes_without_a_dataset() {
    let summary = Folders::new().case("a.nii.gz", &[1, 7], &[1, 5]).evaluate().unwrap();
    assert_eq!(summary.mean.keys().collect::<Vec<_>>(), ["1", "5", "7"]);
}

#[test]
fn pairs_and_classes_can_be_given() {
    let folders = two_cases();
    let pair = Pair { prediction: folders.predictions().join("b.nii.gz"), reference: folders.truth().join("b.nii.gz") };
    let classes = Classes { foreground: vec![LabelValue::Region(vec![1, 2])], ignore_label: None };
    let summary = evaluate_files(&[pair], &classes, &Measures::default()).unwrap();
    assert_eq!(summary.mean["(1, 2)"].tp, 4.0);
}

#[test]
fn different_shapes_are_an_error_that_names_both_files() {
    let folders = Folders::new().case("a.nii.gz", &[1], &[1]);
    write(&folders.predictions().join("a.nii.gz"), [2, 4, 3], &[1]);
    let (error, code) = folders.failure();
    for part in ["predictions/a.nii.gz has [2, 4, 3]", "labelsTr/a.nii.gz has [2, 3, 4]"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(code, exit::INVALID);
}

#[test]
fn files_without_counterpart_are_an_error() {
    let folders = two_cases();
    std::fs::remove_file(folders.predictions().join("a.nii.gz")).unwrap();
    std::fs::remove_file(folders.truth().join("b.nii.gz")).unwrap();
    let (error, code) = folders.failure();
    assert!(error.contains("predictions: missing label maps of 1 case(s): a"), "{error}");
    assert!(error.contains("labelsTr: missing label maps of 1 case(s): b"), "{error}");
    assert_eq!(code, exit::INVALID);
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let folders = two_cases();
    std::fs::write(folders.truth().join("b.nii.gz"), b"not gzip").unwrap();
    let (error, code) = folders.failure();
    assert!(error.contains("labelsTr/b.nii.gz"), "{error}");
    assert_eq!(code, exit::INVALID);
}

#[test]
fn the_command_prints_a_table_and_writes_the_summary() {
    let folders = two_cases();
    let mut command = Command::cargo_bin("nnunet-dist").unwrap();
    command.arg("evaluate").arg("-p").arg(folders.predictions()).arg("-g").arg(folders.truth());
    command.assert().success().stdout(contains("mean Dice 0.6667")).stdout(contains("b     1      0.6667"));
    let summary = Summary::load(&folders.predictions().join("summary.json")).unwrap();
    assert_eq!(summary.metric_per_case.len(), 2);
}
