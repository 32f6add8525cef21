//! The command line: help, exit codes, one-line errors, no partial output.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use clap::CommandFactory;
use ndarray::{Array3, Array4};
use nnunet_dist::cli::Cli;
use nnunet_dist::image::{Geometry, LabelMap, Volume, write_labels, write_volume};
use nnunet_dist::phantom::PhantomOptions;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::plans::shrink;

pub fn nnunet_dist<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::cargo_bin("nnunet-dist").expect("cargo builds the program before its tests");
    command.args(args).env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    command
}

/// A raw dataset and the path of its work folder.
pub struct Folders {
    folder: TempDir,
}

impl Folders {
    pub fn with_phantoms(cases: usize) -> Self {
        let folders = Self { folder: tempfile::tempdir().unwrap() };
        let options = PhantomOptions { train_cases: cases, test_cases: 0, shape: [18, 20, 18], seed: 11 };
        options.generate(&folders.raw()).unwrap();
        folders
    }

    pub fn raw(&self) -> PathBuf {
        self.folder.path().join("raw")
    }

    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn run(&self, subcommand: &str, more: &[&str]) -> Command {
        let mut command = nnunet_dist([subcommand]);
        if subcommand == "plan" {
            command.arg("-d").arg(self.raw());
        }
        command.arg("-w").arg(self.work()).args(more);
        command
    }
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in [
        "plan",
        "preprocess",
        "train",
        "status",
        "report",
        "predict",
        "serve",
        "evaluate",
        "accumulate",
        "find-best-configuration",
        "ensemble",
        "postprocess",
        "import",
        "export",
        "convert",
        "inspect",
        "scale",
        "phantom",
        "demo",
        "doctor",
        "completions",
    ] {
        nnunet_dist([command, "--help"]).assert().success().stdout(contains("Example").and(contains("nnunet-dist")));
    }
    nnunet_dist(["train", "--help"]).assert().stdout(contains("[default: 0.01 for sgd").and(contains("mpirun")));
    nnunet_dist(["plan", "--help"]).assert().stdout(contains("in GB").and(contains("[default: 8,")));
    for shell in ["bash", "zsh", "fish"] {
        nnunet_dist(["completions", shell]).assert().success().stdout(contains("preprocess"));
    }
    assert!(undocumented_defaults(&Cli::command()).is_empty(), "{:?}", undocumented_defaults(&Cli::command()));
    nnunet_dist(["trian"]).assert().code(2).stderr(contains("train"));
    nnunet_dist(["train", "-w", "x", "-c", "2d", "-f", "first"]).assert().code(2).stderr(contains("first"));
}

/// Options that take a value, are not required and do not document their default.
fn undocumented_defaults(command: &clap::Command) -> Vec<String> {
    let options = command.get_subcommands().flat_map(|subcommand| {
        let options = subcommand.get_arguments().filter(|option| option.get_action().takes_values());
        options.map(move |option| (subcommand.get_name(), option))
    });
    let silent = options.filter(|(_, option)| {
        let help = option.get_long_help().or(option.get_help()).map(ToString::to_string).unwrap_or_default();
        let says_default = !option.get_default_values().is_empty() || help.contains("[default: ");
        help.is_empty() || !(option.is_required_set() || says_default)
    });
    let silent = silent.map(|(subcommand, option)| format!("{subcommand} {}", option.get_id()));
    // Without a settings file there are no defaults from one.
    silent.filter(|option| !option.ends_with(" config")).collect()
}

#[test]
fn all_problems_of_a_dataset_are_listed_at_once() {
    let folders = Folders::with_phantoms(4);
    let image = |case: usize| folders.raw().join(format!("imagesTr/phantom_{case:03}_0000.nii.gz"));
    fs::remove_file(image(0)).unwrap();
    fs::write(image(1), b"not an image").unwrap();
    let shape = Array3::from_elem((3, 3, 3), 1);
    write_labels(
        &folders.raw().join("labelsTr/phantom_002.nii.gz"),
        &LabelMap { data: shape, geometry: Geometry::default() },
    )
    .unwrap();
    let named = ["phantom_000", "phantom_001", "phantom_002"].map(contains);
    let [a, b, c] = named;
    let run = folders.run("plan", &[]).assert().code(3).stdout(is_empty());
    run.stderr(a.and(b).and(c).and(contains("phantom_003").not()).and(contains("\nerror: ")));
    assert!(!folders.work().exists(), "nothing is written for a dataset that cannot be used");
}

#[test]
fn a_plan_that_cannot_be_made_writes_nothing() {
    let folders = Folders::with_phantoms(2);
    folders.run("plan", &["-c", "4d"]).assert().code(3).stderr(contains("4d"));
    assert!(!folders.work().exists());
}

#[test]
fn a_dataset_becomes_work_files_that_users_may_edit() {
    let folders = Folders::with_phantoms(6);
    let plan = folders.run("plan", &["-c", "2d,3d_fullres"]).assert().success();
    plan.stdout(contains("3d_fullres")).stderr(contains("checking 6 cases"));
    let splits = folders.work().join("splits_final.json");
    let held_out = ["phantom_002", "phantom_003", "phantom_004", "phantom_005"];
    let own = json!([{"train": ["phantom_000", "phantom_001"], "val": held_out}]);
    fs::write(&splits, own.to_string()).unwrap();
    folders.run("plan", &["-c", "2d,3d_fullres", "-q"]).assert().success().stderr(is_empty());
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(&splits).unwrap()).unwrap(), own, "a user's splits are kept");

    folders.run("preprocess", &["-c", "3d_fullres", "-j", "1"]).assert().success().stdout(contains("6 cases"));
    folders.run("preprocess", &["-q"]).assert().success().stderr(is_empty());
    for configuration in ["2d", "3d_fullres"] {
        let store = folders.work().join(format!("preprocessed/nnUNetPlans_{configuration}"));
        // Three files per case, the manifest and the checksums.
        assert_eq!(fs::read_dir(store).unwrap().count(), 3 * 6 + 2);
    }
    folders.run("preprocess", &["-c", "3d"]).assert().code(3).stderr(contains("2d, 3d_fullres"));
    folders.run("train", &["-c", "3d", "-f", "0"]).assert().code(3).stderr(contains("2d, 3d_fullres"));
    folders.run("train", &["-c", "2d", "-f", "1"]).assert().code(3).stderr(contains("no fold 1"));
    fs::write(&splits, own.to_string().replace("phantom_002", "phantom_999")).unwrap();
    let strange = contains("splits_final.json").and(contains("phantom_999"));
    folders.run("plan", &["-c", "2d"]).assert().code(3).stderr(strange);
    assert_eq!(partial_files(folders.folder.path()), Vec::<PathBuf>::new());
}

/// Temporary files that a command should have renamed or removed.
fn partial_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_partial = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".partial");
    files.into_iter().filter(is_partial).chain(folders.iter().flat_map(|folder| partial_files(folder))).collect()
}

#[test]
fn evaluation_prints_the_dice_and_writes_the_summary() {
    let folders = Folders::with_phantoms(2);
    let labels = folders.raw().join("labelsTr");
    let summary = folders.folder.path().join("summary.json");
    let mut command = nnunet_dist(["evaluate", "-p"]);
    command.arg(&labels).arg("-g").arg(&labels).arg("-o").arg(&summary);
    command.assert().success().stdout(contains("mean Dice 1.0000"));
    let summary: Value = serde_json::from_slice(&fs::read(summary).unwrap()).unwrap();
    assert_eq!(summary["foreground_mean"]["Dice"], 1.0);
    nnunet_dist(["evaluate", "-p", "/nowhere", "-g", "/nowhere"]).assert().code(3).stderr(contains("error: /nowhere"));
}

#[test]
fn missing_inputs_are_named_with_a_remedy() {
    let folders = Folders::with_phantoms(2);
    nnunet_dist(["plan", "-d", "/nowhere", "-w", "x"]).assert().code(3).stderr(contains("/nowhere"));
    folders.run("preprocess", &[]).assert().code(3).stderr(contains("plan"));
    folders.run("train", &["-c", "2d", "-f", "0"]).assert().code(3).stderr(contains("nnUNetPlans.json"));
    let predict = ["predict", "-r", "/nowhere", "-i", "/nowhere", "-o", "/nowhere"];
    let advice = contains("/nowhere/checkpoint_latest").and(contains("the directory of a training run"));
    nnunet_dist(predict).assert().code(3).stderr(advice);
    if cfg!(not(feature = "cuda")) {
        nnunet_dist(predict).args(["--device", "cuda"]).assert().code(4).stderr(contains("--features cuda"));
    }
}

/// Plan, preprocess, train, predict and evaluate a raw dataset with region targets.
#[test]
fn regions_work_from_dataset_to_evaluation() {
    let folders = Folders { folder: tempfile::tempdir().unwrap() };
    let options = PhantomOptions { train_cases: 3, test_cases: 1, shape: [18, 20, 18], seed: 11 };
    options.generate(&folders.raw()).unwrap();
    edit(&folders.raw().join("dataset.json"), |dataset| {
        dataset["labels"] = json!({"background": 0, "whole": [1, 2], "core": 2});
        dataset["regions_class_order"] = json!([1, 2]);
    });
    folders.run("plan", &["-c", "3d_fullres", "-q"]).assert().success();
    edit(&folders.work().join("nnUNetPlans.json"), |plans| shrink(&mut plans["configurations"]["3d_fullres"]));
    folders.run("preprocess", &["-q"]).assert().success();
    let short = ["--epochs", "1", "--iters-per-epoch", "1", "--val-iters", "1"];
    let train = folders.run("train", &["-c", "3d_fullres", "-f", "0", "-q"]).args(short).assert();
    train.success().stdout(contains("(1, 2)").and(contains("mean Dice ")));

    let (run, predictions) = (folders.work().join("runs/3d_fullres/fold_0"), folders.folder.path().join("predictions"));
    let predict = |checkpoint: &str| {
        let mut command = nnunet_dist(["predict", "--no-tta", "-q", "--checkpoint", checkpoint, "-r"]);
        command.arg(&run).arg("-i").arg(folders.raw().join("imagesTs")).arg("-o").arg(&predictions).assert()
    };
    predict("latest").success();
    assert!(predictions.join("phantom_003.nii.gz").exists());
    fs::remove_file(run.join("checkpoint_latest")).unwrap();
    predict("best").success();
    predict("latest").code(3).stderr(contains("checkpoint_latest"));
}

/// Edits a JSON file as a user would.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Natural images: one file per case, colors as channels, no geometry.
#[test]
fn raster_images_are_a_dataset_too() {
    for (ending, channels) in [(".png", 3), (".png", 1), (".tif", 1)] {
        let folders = Folders { folder: tempfile::tempdir().unwrap() };
        for case in 0..5usize {
            let value = |c: usize, y: usize, x: usize| ((c * 40 + case * 13 + y * 3 + x * 5) % 256) as f32;
            let data = Array4::from_shape_fn((channels, 1, 40, 48), |(c, _, y, x)| value(c, y, x));
            let labels = Array3::from_shape_fn((1, 40, 48), |(_, y, x)| i16::from((y / 10 + x / 12) % 2 == 0));
            let geometry = Geometry::default();
            let name = |part: &str, channel: &str| folders.raw().join(format!("{part}/case{case}{channel}{ending}"));
            write_volume(&name("imagesTr", "_0000"), &Volume { data, geometry: geometry.clone() }).unwrap();
            write_labels(&name("labelsTr", ""), &LabelMap { data: labels, geometry }).unwrap();
        }
        let names = ["R", "G", "B"].iter().take(channels).enumerate().map(|(i, name)| (i.to_string(), json!(name)));
        let description = json!({
            "channel_names": names.collect::<serde_json::Map<_, _>>(),
            "labels": {"background": 0, "check": 1},
            "numTraining": 5,
            "file_ending": ending,
        });
        fs::write(folders.raw().join("dataset.json"), description.to_string()).unwrap();
        folders.run("plan", &[]).assert().success().stdout(contains("2d").and(contains("3d_fullres").not()));
        folders.run("preprocess", &[]).assert().success().stdout(contains("5 cases"));
    }
}
