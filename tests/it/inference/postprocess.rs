//! Postprocessing is determined as nnU-Net determines it, and applied to new predictions. Expected values are those of
//! nnU-Net v2.8 (`determine_postprocessing`) and of acvl_utils (`remove_all_but_largest_component`).

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use ndarray::{Array3, s};
use nnunet_dist::eval::{FolderOptions, Summary, evaluate_folder};
use nnunet_dist::image::{Geometry, LabelMap, read_labels, write_labels};
use nnunet_dist::postprocess::{DetermineOptions, Determined, Postprocessing, determine_folder, keep_largest};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use tempfile::TempDir;

type Box3 = [(usize, usize); 3];

fn fill(labels: &mut Array3<i16>, [z, y, x]: Box3, label: i16) {
    labels.slice_mut(s![z.0..z.1, y.0..y.1, x.0..x.1]).fill(label);
}

/// Defects of a prediction, in addition to a missing face of class 1.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// A distant component of class 1.
    Spot1,
    /// Components of class 2: one inside class 1, one outside.
    Spots2,
    /// Both `Spot1` and `Spots2`.
    Both,
    /// Class 3 is in two components, both correct.
    Split3,
    None,
}
use Fault::{Both, Split3, Spot1, Spots2};

/// Three organs, made into a single component if `joined`.
fn truth(case: usize, joined: bool) -> Array3<i16> {
    let mut labels = Array3::zeros((10, 16, 20));
    if joined {
        fill(&mut labels, [(3, 4), (5, 6), (2, 14)], 1);
    }
    fill(&mut labels, [(2, 8), (3, 12), (2, 9 + case)], 1);
    fill(&mut labels, [(4, 6), (5, 9), (4, 7)], 2);
    fill(&mut labels, [(3, 6), (4, 8), (13, 17)], 3);
    labels
}

fn prediction(case: usize, joined: bool, fault: Fault) -> Array3<i16> {
    let mut labels = truth(case, joined);
    fill(&mut labels, [(2, 3), (3, 12), (2, 9)], 0);
    if [Spot1, Both].contains(&fault) {
        fill(&mut labels, [(8, 10), (14, 16), (0, 3)], 1);
    }
    if [Spots2, Both].contains(&fault) {
        fill(&mut labels, [(2, 3), (10, 11), (2, 4)], 2);
        fill(&mut labels, [(9, 10), (0, 2), (18, 20)], 2);
    }
    if fault == Split3 {
        fill(&mut labels, [(3, 6), (4, 8), (15, 16)], 0);
    }
    labels
}

/// A dataset's `labelsTr` and predictions of it.
struct Folders {
    root: TempDir,
}

impl Folders {
    fn new(labels: &str, joined: bool, faults: &[Fault]) -> Self {
        let folders = Self { root: TempDir::new().unwrap() };
        for (case, fault) in faults.iter().enumerate() {
            folders.write(&folders.truth(), case, truth(case, joined));
            folders.write(&folders.predictions(), case, prediction(case, joined, *fault));
        }
        let fixed = r#""channel_names": {"0": "MR"}, "numTraining": 1, "file_ending": ".nii.gz""#;
        std::fs::write(folders.root.path().join("raw/dataset.json"), format!("{{{fixed}, \"labels\": {labels}}}"))
            .unwrap();
        folders
    }

    fn predictions(&self) -> PathBuf {
        self.root.path().join("predictions")
    }

    fn truth(&self) -> PathBuf {
        self.root.path().join("raw/labelsTr")
    }

    fn write(&self, folder: &Path, case: usize, data: Array3<i16>) {
        let path = folder.join(format!("c{case}.nii.gz"));
        write_labels(&path, &LabelMap { data, geometry: Geometry::default() }).unwrap();
    }

    fn determine(&self) -> Determined {
        determine_folder(&self.predictions(), &self.truth(), None, DetermineOptions::default()).unwrap()
    }
}

/// Asserts the labels of each step, and each class's Dice before and after.
#[track_caller]
fn assert_determined(determined: &Determined, steps: &[&[i16]], dice: &[(&str, f64, f64)]) {
    let found: Vec<&[i16]> = determined.postprocessing.steps.iter().map(|step| step.labels.as_slice()).collect();
    assert_eq!(found, steps, "{:?}", determined.trials);
    for (class, before, after) in dice {
        for (summary, expected) in [(&determined.before, before), (&determined.after, after)] {
            let found = summary.mean[*class].dice;
            assert!((found - expected).abs() < 1e-12, "{class}: {found}, not {expected}");
        }
    }
}

const CLASSES: &str = r#"{"background": 0, "a": 1, "b": 2, "c": 3}"#;
const REGIONS: &str =
    r#"{"background": 0, "whole": [1, 2, 3], "ab": [1, 2], "b": 2}, "regions_class_order": [1, 2, 3]"#;

#[test]
fn classes_are_postprocessed_if_their_dice_improves() {
    let spots = Folders::new(CLASSES, false, &[Spot1, Spots2, Fault::None]).determine();
    let expected = [("1", 0.909669559501904, 0.9151631703475377), ("2", 0.9629629629629629, 1.0), ("3", 1.0, 1.0)];
    assert_determined(&spots, &[&[1], &[2]], &expected);

    let mixed = Folders::new(CLASSES, false, &[Both, Split3, Split3]).determine();
    assert_determined(&mixed, &[&[1], &[2]], &[("3", 0.9047619047619048, 0.9047619047619048)]);
    assert!((mixed.after.foreground_mean.dice - 0.9399750250364808).abs() < 1e-12);

    let clean = Folders::new(CLASSES, false, &[Fault::None, Fault::None]).determine();
    assert_determined(&clean, &[], &[("1", 0.9093301213749652, 0.9093301213749652)]);
}

#[test]
fn all_foreground_is_one_component_if_no_class_gets_worse() {
    let joined = Folders::new(CLASSES, true, &[Spot1, Fault::None, Both]).determine();
    let expected = [("1", 0.9062317594681671, 0.9158952942317905), ("2", 0.9629629629629629, 1.0), ("3", 1.0, 1.0)];
    assert_determined(&joined, &[&[1, 2, 3], &[2]], &expected);

    let single = Folders::new(r#"{"background": 0, "a": 1}"#, false, &[Spot1, Fault::None]).determine();
    assert_determined(&single, &[&[1]], &[("1", 0.9010897051065145, 0.9093301213749652)]);
    assert_eq!(single.trials.len(), 1, "a single class is all foreground");
}

#[test]
fn regions_are_postprocessed_one_on_top_of_the_other() {
    let apart = Folders::new(REGIONS, false, &[Spot1, Both, Spots2]).determine();
    let expected = [
        ("(1, 2)", 0.9095205586311272, 0.9203774310015271),
        ("(1, 2, 3)", 0.9193070854359034, 0.9290771367927331),
        ("2", 0.9259259259259259, 1.0),
    ];
    assert_determined(&apart, &[&[1, 2], &[2]], &expected);
    let joined = Folders::new(REGIONS, true, &[Spot1, Fault::None, Both]).determine();
    let expected = [
        ("(1, 2)", 0.9113456592570337, 0.9210193958827405),
        ("(1, 2, 3)", 0.9208499517166402, 0.9295826921888466),
        ("2", 0.9629629629629629, 1.0),
    ];
    assert_determined(&joined, &[&[1, 2, 3], &[2]], &expected);
}

#[test]
fn the_largest_component_equals_acvl_utils() {
    let hash = |z: usize, y: usize, x: usize| {
        let mixed = (z as u64 * 73_856_093) ^ (y as u64 * 19_349_663) ^ (x as u64 * 83_492_791);
        (mixed.wrapping_mul(2_654_435_761) >> 7) % 100
    };
    // Voxels of the mask, of its largest components, and the sum of their indices.
    for (percent, voxels, kept, sum) in
        [(6, 177, 13, 6408), (9, 261, 47, 29509), (12, 355, 206, 270_362), (20, 551, 531, 681_622)]
    {
        let mut labels = Array3::from_shape_fn((12, 14, 16), |(z, y, x)| i16::from(hash(z, y, x) < percent));
        assert_eq!(labels.iter().filter(|label| **label == 1).count(), voxels);
        keep_largest(labels.view_mut(), &[1], 0);
        let kept_voxels: Vec<usize> =
            labels.iter().enumerate().filter(|(_, label)| **label == 1).map(|(at, _)| at).collect();
        assert_eq!((kept_voxels.len(), kept_voxels.iter().sum::<usize>()), (kept, sum), "{percent} %");
    }
    let mut plane = Array3::from_shape_fn((1, 14, 16), |(z, y, x)| i16::from(hash(z, y, x) < 30));
    keep_largest(plane.view_mut(), &[1], 0);
    let kept: Vec<usize> = plane.iter().enumerate().filter(|(_, label)| **label == 1).map(|(at, _)| at).collect();
    assert_eq!((kept.len(), kept.iter().sum::<usize>()), (17, 706));
}

fn command(flags: &[&str]) -> Command {
    let mut command = Command::cargo_bin("nnunet-dist").unwrap();
    command.env_remove("RUST_LOG").arg("postprocess").args(flags);
    command
}

#[test]
fn the_command_determines_and_applies() {
    let folders = Folders::new(CLASSES, false, &[Spot1, Spots2, Fault::None]);
    let mut determine = command(&["--determine", "-i"]);
    determine.arg(folders.predictions()).arg("-g").arg(folders.truth());
    let said = contains("largest component of all foreground  Dice").and(contains("no\n")).and(contains("kept\n"));
    determine.assert().success().stdout(said.and(contains("mean Dice 0.9575 -> 0.9717")));

    let file = folders.predictions().join("postprocessing.json");
    assert_eq!(Postprocessing::load(&file).unwrap().steps.len(), 2);
    let output = folders.root.path().join("output");
    let mut apply = command(&["-i"]);
    apply.arg(folders.predictions()).arg("-o").arg(&output).arg("--pp").arg(&file);
    apply.assert().success().stdout(contains("3 cases in"));
    let kept = Summary::load(&folders.predictions().join("postprocessed/summary.json")).unwrap();
    let evaluated = evaluate_folder(&output, &folders.truth(), &FolderOptions::default()).unwrap();
    assert_eq!(evaluated.mean, kept.mean);
    let spot = read_labels(&output.join("c0.nii.gz")).unwrap().data[[8, 14, 0]];
    assert_eq!(spot, 0);
}

#[test]
fn invalid_arguments_are_refused_before_any_work() {
    let folders = Folders::new(CLASSES, false, &[Spot1]);
    let with = |flags: &[&str]| {
        let mut command = command(flags);
        command.arg("-i").arg(folders.predictions());
        command
    };
    with(&[]).assert().code(2).stderr(contains("--pp"));
    with(&["--determine"]).assert().code(2).stderr(contains("--ground-truth"));
    with(&["--pp", "x.json"]).assert().code(2).stderr(contains("--output"));
    with(&["--pp", "nowhere.json", "-o", "out"]).assert().code(3).stderr(contains("nowhere.json"));
    let file = folders.root.path().join("pp.json");
    std::fs::write(&file, r#"{"postprocessing_fns": [], "postprocessing_kwargs": []}"#).unwrap();
    let mut onto_itself = with(&[]);
    onto_itself.arg("--pp").arg(&file).arg("-o").arg(folders.predictions());
    onto_itself.assert().code(3).stderr(contains("would replace an input"));
    std::fs::remove_file(folders.root.path().join("raw/dataset.json")).unwrap();
    let mut without_labels = with(&["--determine"]);
    without_labels.arg("-g").arg(folders.truth()).assert().code(3).stderr(contains("--dataset-json"));
}
