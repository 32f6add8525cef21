//! The most frequent slips of new users: one line shows the right form, and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use ndarray::Array3;
use nnunet_dist::image::{Geometry, LabelMap, read_volume, write_labels};
use nnunet_dist::phantom::PhantomOptions;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::cli::nnunet_dist;
use crate::series::Series;

/// A raw dataset of five phantoms.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let options = PhantomOptions { train_cases: 5, test_cases: 0, shape: [18, 20, 18], seed: 11 };
        options.generate(&desk.raw("")).unwrap();
        desk
    }

    fn raw(&self, path: &str) -> PathBuf {
        self.0.path().join("raw").join(path)
    }

    fn work(&self, path: &str) -> PathBuf {
        self.0.path().join("work").join(path)
    }

    fn command(&self, command: &str) -> Command {
        let mut command = nnunet_dist([command]);
        command.current_dir(self.0.path()).args(["-w", "work"]);
        command
    }

    fn plan(&self) -> Command {
        let mut command = self.command("plan");
        command.args(["-d", "raw", "-c", "3d_fullres"]);
        command
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.raw("dataset.json");
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }

    /// Asserts that planning fails with a line that contains all `parts`, and writes nothing.
    #[track_caller]
    fn is_refused(&self, parts: &[&str]) {
        let run = self.plan().assert().code(3).stdout(is_empty());
        let stderr = String::from_utf8(run.get_output().stderr.clone()).unwrap();
        assert!(stderr.lines().any(|line| parts.iter().all(|part| line.contains(part))), "{parts:?}: {stderr}");
        assert!(!self.work("").exists(), "nothing is written");
    }
}

#[test]
fn slips_in_dataset_json_show_the_right_form() {
    for (key, value, parts) in [
        ("labels", json!({"0": "background", "1": "a", "2": "b"}), ["labels", r#"{"background": 0, "a": 1, "b": 2}"#]),
        ("labels", json!(["a", "b"]), ["labels is a list", r#"{"background": 0, "a": 1, "b": 2}"#]),
        ("labels", json!({"background": 0, "a": 40000}), ["40000", "32767"]),
        ("numTraining", json!("5"), ["numTraining", "write 5 without quotes"]),
        ("channel_names", json!(["MR"]), ["channel_names is a list", r#"{"0": "MR"}"#]),
        ("file_ending", json!("nii.gz"), ["file_ending", r#"".nii.gz""#]),
        ("file_ending", json!(".img"), ["file_ending", ".img files are read, but label maps cannot be written"]),
        ("file_ending", json!(".dcm"), ["file_ending", "nnunet-dist convert"]),
    ] {
        let desk = Desk::new();
        desk.edit(|dataset| dataset[key] = value);
        if parts[1].contains(".img files") || parts[1].contains("convert") {
            // Such images are found only under their own ending.
            for folder in ["imagesTr", "labelsTr"] {
                for entry in fs::read_dir(desk.raw(folder)).unwrap() {
                    let path = entry.unwrap().path();
                    let name = path.file_name().unwrap().to_str().unwrap().replace(".nii.gz", "");
                    let ending = if parts[1].contains("convert") { ".dcm" } else { ".img" };
                    fs::rename(&path, path.with_file_name(name + ending)).unwrap();
                }
            }
        }
        desk.is_refused(&parts);
    }
}

#[test]
fn regions_that_would_be_lost_are_refused_with_an_order_that_works() {
    let desk = Desk::new();
    desk.edit(|dataset| {
        dataset["labels"] = json!({"background": 0, "whole": [1, 2], "core": 2});
        dataset["regions_class_order"] = json!([2, 1]);
    });
    desk.is_refused(&["regions_class_order", "core", "use [1, 2]"]);
}

#[test]
fn a_byte_order_mark_is_no_defect_and_utf_16_is_named() {
    let desk = Desk::new();
    let mark = |path: &Path| {
        let text = fs::read(path).unwrap();
        fs::write(path, [&b"\xef\xbb\xbf"[..], &text].concat()).unwrap();
    };
    mark(&desk.raw("dataset.json"));
    desk.plan().assert().success();
    for name in ["source.toml", "dataset.json", "nnUNetPlans.json", "splits_final.json"] {
        mark(&desk.work(name));
    }
    desk.plan().args(["--plans-name", "others"]).assert().success().stdout(contains("splits: kept"));
    desk.command("preprocess").assert().success();
    desk.command("train").args(["-c", "3d_fullres", "-f", "9"]).assert().code(3).stderr(contains("no fold 9"));

    let text = fs::read_to_string(desk.raw("dataset.json")).unwrap();
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for name in ["splits_final.json", "nnUNetPlans.json"] {
        fs::write(desk.work(name), &utf16).unwrap();
    }
    desk.plan().assert().code(3).stderr(contains("splits_final.json: is text in UTF-16; save it as UTF-8"));
    desk.command("preprocess").assert().code(3).stderr(contains("nnUNetPlans.json").and(contains("UTF-16")));
    fs::write(desk.raw("dataset.json"), utf16).unwrap();
    desk.plan().assert().code(3).stderr(contains("dataset.json: is text in UTF-16"));
}

#[test]
fn images_too_small_for_a_network_write_nothing() {
    let desk = Desk(tempfile::tempdir().unwrap());
    let data = Array3::from_shape_fn((3, 3, 3), |(z, y, x)| ((z + y + x) % 2) as i16);
    for case in 0..3 {
        for name in [format!("imagesTr/{case}_0000.nii"), format!("labelsTr/{case}.nii")] {
            write_labels(&desk.raw(&name), &LabelMap { data: data.clone(), geometry: Geometry::default() }).unwrap();
        }
    }
    let json = json!({"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 3,
        "file_ending": ".nii"});
    fs::write(desk.raw("dataset.json"), json.to_string()).unwrap();
    desk.is_refused(&["the images are too small", "3 x 3"]);
}

#[test]
fn label_maps_of_other_names_are_named() {
    let desk = Desk::new();
    for entry in fs::read_dir(desk.raw("labelsTr")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().replace(".nii.gz", ".seg.nii.gz");
        fs::rename(&path, path.with_file_name(name)).unwrap();
    }
    desk.is_refused(&["labelsTr", "phantom_000.nii.gz", "phantom_000.seg.nii.gz", "3D Slicer"]);
}

#[test]
fn a_label_beyond_the_limit_is_named_with_the_limit() {
    let desk = Desk::new();
    let image = read_volume(&desk.raw("imagesTr/phantom_000_0000.nii.gz")).unwrap();
    // A NIfTI file of int32 with one value of 65537.
    let voxels = image.data.len();
    let mut bytes = vec![0u8; 352];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &348i32.to_le_bytes());
    put(40, &[3i16, 18, 20, 18, 1, 1, 1, 1].map(i16::to_le_bytes).concat());
    put(70, &[8i16, 32].map(i16::to_le_bytes).concat());
    put(76, &[1f32; 8].map(f32::to_le_bytes).concat());
    put(108, &352f32.to_le_bytes());
    put(344, b"n+1\0");
    bytes.extend(65537i32.to_le_bytes());
    bytes.resize(352 + 4 * voxels, 0);
    fs::write(desk.raw("labelsTr/phantom_000.nii.gz"), bytes).unwrap();
    desk.is_refused(&["phantom_000.nii.gz", "65537", "32767"]);
}

#[test]
fn a_folder_without_dataset_json_gets_one_from_init() {
    let desk = Desk::new();
    fs::remove_file(desk.raw("dataset.json")).unwrap();
    desk.is_refused(&["raw/dataset.json", "plan -d raw --init --channels CT --labels liver,tumour"]);
    let init = ["plan", "-d", "raw", "--init", "--channels", "MR", "--labels", "ball,shell"];
    let mut command = nnunet_dist(init);
    command.current_dir(desk.0.path()).assert().success().stdout(contains("raw/dataset.json"));
    let json: Value = serde_json::from_slice(&fs::read(desk.raw("dataset.json")).unwrap()).unwrap();
    assert_eq!(json["labels"], json!({"background": 0, "ball": 1, "shell": 2}));
    assert_eq!((&json["numTraining"], &json["file_ending"]), (&json!(5), &json!(".nii.gz")));
    let mut again = nnunet_dist(init);
    again.current_dir(desk.0.path()).assert().code(3).stderr(contains("exists already"));
    desk.plan().assert().success();
    nnunet_dist(["plan", "-d", "raw", "--init"]).assert().code(2).stderr(contains("--channels"));
}

#[test]
fn dicom_in_place_of_a_dataset_is_named_with_its_conversion() {
    let desk = Desk::new();
    for file in fs::read_dir(desk.raw("imagesTr")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let series = desk.raw("imagesTr/patient");
    fs::create_dir(&series).unwrap();
    Series::default().write(&series);
    desk.is_refused(&["imagesTr", "DICOM", "nnunet-dist convert raw/imagesTr/patient"]);
    let mut command = desk.command("plan");
    command.arg("-d").arg(&series).assert().code(3).stderr(contains("DICOM").and(contains("nnunet-dist convert")));
    let mut command = desk.command("plan");
    command.args(["-d", "4"]).assert().code(3).stderr(contains("not nnU-Net's number"));
}

#[test]
fn files_left_out_and_cases_in_no_fold_are_named() {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new();
    let image = desk.raw("imagesTr/phantom_000_0000.nii.gz");
    fs::copy(&image, desk.raw("imagesTr/other_0000.nii")).unwrap();
    let latin = std::ffi::OsStr::from_bytes(b"caf\xe9_0000.nii.gz");
    fs::copy(&image, desk.raw("imagesTr").join(latin)).unwrap();
    let named = || contains("left out imagesTr: other_0000.nii").and(contains(r"caf\xe9_0000.nii.gz"));
    desk.plan().assert().success().stderr(named());
    desk.edit(|dataset| dataset["numTraining"] = json!(6));
    desk.plan().assert().code(3).stderr(contains("there are 5 cases; left out: imagesTr").and(named()));

    for (folder, channel) in [("imagesTr", "_0000"), ("labelsTr", "")] {
        let from = desk.raw(&format!("{folder}/phantom_000{channel}.nii.gz"));
        fs::copy(from, desk.raw(&format!("{folder}/new{channel}.nii.gz"))).unwrap();
    }
    desk.plan().assert().success().stderr(contains("splits_final.json: 1 cases are in no fold").and(contains("new")));
}

#[test]
fn what_the_end_of_a_training_needs_is_looked_for_at_its_beginning() {
    let desk = Desk::new();
    desk.plan().assert().success();
    desk.command("preprocess").assert().success();
    let train = || {
        let mut command = desk.command("train");
        command.args(["-c", "3d_fullres", "-f", "0", "--epochs", "1", "--iters-per-epoch", "1", "--val-iters", "1"]);
        command.assert().code(3)
    };
    let untouched = || assert!(!desk.work("runs").exists(), "no training has begun");
    let splits: Value = serde_json::from_slice(&fs::read(desk.work("splits_final.json")).unwrap()).unwrap();
    let held_out = splits[0]["val"][0].as_str().unwrap();
    let label = desk.raw(&format!("labelsTr/{held_out}.nii.gz"));
    fs::rename(&label, desk.raw("away")).unwrap();
    train().stderr(contains(format!("{held_out}.nii.gz: missing")));
    untouched();
    fs::rename(desk.raw("away"), &label).unwrap();
    fs::rename(desk.raw("labelsTr"), desk.raw("elsewhere")).unwrap();
    train().stderr(contains("labelsTr"));
    untouched();
    fs::rename(desk.raw(""), desk.0.path().join("moved")).unwrap();
    train().stderr(contains("source.toml").and(contains("raw is not there")));
    untouched();
    desk.command("preprocess").assert().code(3).stderr(contains("source.toml"));
}

#[test]
fn nnunets_flags_are_answered_with_the_right_form() {
    for (line, right) in [
        ("predict -w w -c 2d -i in -o out -chk checkpoint_best.pth", "--checkpoint best"),
        ("train -w w -c 2d -f 0 -device cuda", "--device cuda"),
        ("predict -d 4 -c 3d_fullres -f 0 -i in -o out", "-w WORK"),
        ("train 4 3d_fullres 0", "train -w WORK -c 3d_fullres -f 0"),
    ] {
        let run = nnunet_dist(line.split(' ')).assert().code(2).stderr(contains(right));
        let stderr = String::from_utf8(run.get_output().stderr.clone()).unwrap();
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn values_that_do_not_fit_are_reported_by_convert() {
    let folder = tempfile::tempdir().unwrap();
    let header = |kind: &str| {
        format!("ObjectType = Image\nNDims = 3\nDimSize = 2 1 1\nElementType = {kind}\nElementDataFile = LOCAL\n")
    };
    let write = |name: &str, kind: &str, voxels: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, [header(kind).as_bytes(), voxels].concat()).unwrap();
        path
    };
    let files = [
        (write("double.mha", "MET_DOUBLE", &[1e40f64, 0.1].map(f64::to_le_bytes).concat()), "1e40 becomes inf"),
        (write("int.mha", "MET_INT", &[16_777_217i32, 1].map(i32::to_le_bytes).concat()), "16777217 becomes 16777216"),
        (write("good.mha", "MET_DOUBLE", &[16_777_216f64, 0.1].map(f64::to_le_bytes).concat()), ""),
    ];
    for (input, remark) in files {
        let mut command = nnunet_dist(["convert"]);
        let run = command.arg(&input).arg(input.with_extension("nii")).assert().success();
        let stderr = String::from_utf8(run.get_output().stderr.clone()).unwrap();
        assert!(stderr.contains(remark) && stderr.is_empty() == remark.is_empty(), "{}: {stderr}", input.display());
    }
}
