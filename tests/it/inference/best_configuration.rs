//! From cross-validated configurations to predictions with the best of them: ensembles of probabilities, the
//! comparison, postprocessing, and the inference instructions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ndarray::{Array3, Array4, s};
use nnunet_dist::crossval::{BestOptions, CrossvalError, HeldOutResults, Information, accumulate, find_best};
use nnunet_dist::dataset::{DatasetJson, Fold};
use nnunet_dist::ensemble::{EnsembleOptions, ensemble_folders};
use nnunet_dist::eval::Summary;
use nnunet_dist::fsio::write_json;
use nnunet_dist::image::{Geometry, LabelMap, read_labels, write_labels};
use nnunet_dist::infer::{ProbabilityArchive, save_probabilities};
use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::work::{FoldId, Source, WorkDir};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::plans::shrink;

const ENDING: &str = ".nii.gz";

fn program(subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE").arg(subcommand);
    command
}

/// Runs a command that must succeed, and returns its standard output.
#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must exit with this code and print all of `words`.
#[track_caller]
fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no `{word}` in {stderr}");
    }
}

fn write(path: &Path, data: Array3<i16>, geometry: &Geometry) {
    write_labels(path, &LabelMap { data, geometry: geometry.clone() }).unwrap();
}

/// Compares with nnU-Net v2.8's results for three predictions of four classes, or of four regions
/// (`average_probabilities`, `convert_probabilities_to_segmentation`).
#[test]
fn ensembles_equal_nnunets() {
    let folder = TempDir::new().unwrap();
    let geometry = Geometry { spacing: [2.0, 0.5, 0.7], origin: [1.0, -2.0, 3.0], ..Geometry::default() };
    let probability = |member: usize, (c, z, y, x): (usize, usize, usize, usize)| {
        let number = member * 7919 + c * 104_729 + z * 1_299_709 + y * 15_485_863 + x * 32_452_843 + 12345;
        let hash = ((number as u64 * 2_654_435_761) % (1 << 32)) >> 9;
        (hash % 1000) as f32 / 1000.0
    };
    let inputs: Vec<PathBuf> = (0..3).map(|member| folder.path().join(format!("member_{member}"))).collect();
    for (member, input) in inputs.iter().enumerate() {
        fs::create_dir_all(input).unwrap();
        let values = Array4::from_shape_fn((4, 3, 5, 7), |at| probability(member, at));
        save_probabilities(&input.join("case.npz"), &values).unwrap();
        write(&input.join("case.nii.gz"), Array3::zeros((3, 5, 7)), &geometry);
    }
    let classes = r#"{"background": 0, "a": 1, "b": 2, "c": 3}"#;
    let regions = r#"{"background": 0, "w": [1, 2, 3, 4], "x": [2, 3, 4], "y": [3, 4], "z": 4},
        "regions_class_order": [1, 2, 3, 4]"#;
    for (name, labels, expected) in [
        (
            "classes",
            classes,
            "220000100112231220001301223333230013303012122330032000111023320300112200112231223001001123333232010011220",
        ),
        (
            "regions",
            regions,
            "344422342334443444424422344444441124444233334441143142232134444412334442334443444424423344444440124223344",
        ),
    ] {
        let fixed = r#""channel_names": {"0": "MR"}, "numTraining": 1, "file_ending": ".nii.gz""#;
        fs::write(inputs[0].join("dataset.json"), format!("{{{fixed}, \"labels\": {labels}}}")).unwrap();
        let output = folder.path().join(name);
        let options = EnsembleOptions { dataset_json: None, save_probabilities: true };
        assert_eq!(ensemble_folders(&inputs, &output, &options).unwrap(), 1);
        let found = read_labels(&output.join("case.nii.gz")).unwrap();
        let text: String = found.data.iter().map(ToString::to_string).collect();
        assert_eq!(text, expected, "{name}");
        assert!((found.geometry.spacing[2] - 0.7).abs() < 1e-6 && found.geometry.origin == geometry.origin);

        // The averaged probabilities, as input of another ensemble: an ensemble of one member equals that member.
        let again = folder.path().join(format!("{name} again"));
        ensemble_folders(std::slice::from_ref(&output), &again, &EnsembleOptions::default()).unwrap();
        assert_eq!(read_labels(&again.join("case.nii.gz")).unwrap().data, found.data);
        let mut archive = ProbabilityArchive::open(&output.join("case.npz")).unwrap();
        let mut first = f32::NAN;
        archive.maps().unwrap().next_class(|at, part| first = if at == 0 { part[0] } else { first }).unwrap();
        assert_eq!(first, 0.499_666_66);
    }
}

#[test]
fn incompatible_predictions_are_refused() {
    let folder = TempDir::new().unwrap();
    let inputs = ["a", "b"].map(|name| folder.path().join(name));
    for (input, classes) in inputs.iter().zip([2, 3]) {
        fs::create_dir_all(input).unwrap();
        save_probabilities(&input.join("case.npz"), &Array4::zeros((classes, 2, 2, 2))).unwrap();
        write(&input.join("case.nii.gz"), Array3::zeros((2, 2, 2)), &Geometry::default());
    }
    let labels = r#"{"channel_names": {"0": "MR"}, "numTraining": 1, "file_ending": ".nii.gz",
        "labels": {"background": 0, "a": 1}}"#;
    let dataset = folder.path().join("dataset.json");
    fs::write(&dataset, labels).unwrap();
    let output = folder.path().join("out");
    let ensemble = |flags: &[&Path]| {
        let mut command = program("ensemble");
        command.arg("-i").args(&inputs).arg("-o").arg(&output).args(flags);
        command
    };
    refused(&mut ensemble(&[]), 3, &["a/dataset.json", "--dataset-json"]);
    let with_dataset = [Path::new("--dataset-json"), &dataset];
    refused(&mut ensemble(&with_dataset), 3, &["b/case.npz", "[3, 2, 2, 2]", "[2, 2, 2, 2]"]);
    fs::remove_file(inputs[1].join("case.npz")).unwrap();
    refused(&mut ensemble(&with_dataset), 3, &["b: has no probabilities", "--save-probabilities"]);
    assert!(!output.join("case.nii.gz").exists());
}

/// A work folder with the validation results of two folds of two configurations, written without training.
struct Crossval {
    folder: TempDir,
    work: WorkDir,
}

impl Crossval {
    /// Four cases with a cube each; `predict` returns the prediction for a configuration, a case and its true labels.
    fn new(predict: impl Fn(&str, usize, &Array3<i16>) -> Array4<f32>) -> Self {
        let folder = TempDir::new().unwrap();
        let (raw, work) = (folder.path().join("raw"), WorkDir::new(folder.path().join("work")));
        PhantomOptions { train_cases: 4, test_cases: 0, shape: [20, 24, 20], seed: 5 }.generate(&raw).unwrap();
        succeed(program("plan").arg("-d").arg(&raw).arg("-w").arg(work.root()));
        Source::new(&raw).unwrap().save(&work).unwrap();
        write_json(&work.splits(), &splits()).unwrap();
        for configuration in ["2d", "3d_fullres"] {
            for case in 0..4 {
                let name = format!("phantom_{case:03}");
                let truth = read_labels(&raw.join("labelsTr").join(format!("{name}{ENDING}"))).unwrap();
                let probabilities = predict(configuration, case, &truth.data);
                let fold = if case < 2 { 0 } else { 1 };
                let validation = work.run(configuration, FoldId::Number(fold)).validation();
                fs::create_dir_all(&validation).unwrap();
                save_probabilities(&validation.join(format!("{name}.npz")), &probabilities).unwrap();
                write(&validation.join(format!("{name}{ENDING}")), decide(&probabilities), &truth.geometry);
            }
        }
        Self { folder, work }
    }

    fn find(&self, options: &BestOptions) -> Result<(Information, String), CrossvalError> {
        let (information, _) = find_best(&self.work, options)?;
        Ok((information, fs::read_to_string(self.work.inference_instructions()).unwrap()))
    }
}

fn splits() -> Vec<Fold> {
    let cases: Vec<String> = (0..4).map(|case| format!("phantom_{case:03}")).collect();
    let fold = |val: [usize; 2]| Fold {
        train: cases.iter().filter(|case| !val.iter().any(|number| cases[*number] == **case)).cloned().collect(),
        val: val.map(|number| cases[number].clone()).to_vec(),
    };
    vec![fold([0, 1]), fold([2, 3])]
}

fn decide(probabilities: &Array4<f32>) -> Array3<i16> {
    let (_, z, y, x) = probabilities.dim();
    Array3::from_shape_fn((z, y, x), |(z, y, x)| {
        let voxel = probabilities.slice(s![.., z, y, x]);
        let highest = voxel.iter().copied().fold(f32::MIN, f32::max);
        voxel.iter().position(|value| *value == highest).unwrap() as i16
    })
}

/// Probabilities that are certain of the truth, except where `wrong` returns a voxel's probability of background.
fn believe(truth: &Array3<i16>, wrong: impl Fn(usize, usize, usize) -> Option<f32>) -> Array4<f32> {
    let (z, y, x) = truth.dim();
    let mut probabilities = Array4::zeros((3, z, y, x));
    for ((z, y, x), label) in truth.indexed_iter() {
        let doubt = wrong(z, y, x).filter(|_| *label > 0).unwrap_or(0.0);
        probabilities[[0, z, y, x]] += doubt;
        probabilities[[*label as usize, z, y, x]] += 1.0 - doubt;
    }
    probabilities
}

#[test]
fn the_best_configuration_is_found_and_its_instructions_are_written() {
    // Each configuration is wrong, with low confidence, in rows of a plane that the other has right: the ensemble is
    // right everywhere.
    let crossval = Crossval::new(|configuration, _, truth| {
        let middle = truth.dim().0 / 2;
        let plane = if configuration == "2d" { middle } else { middle + 1 };
        let mut probabilities = believe(truth, |z, y, _| (z == plane && y.is_multiple_of(2)).then_some(0.7));
        if configuration == "3d_fullres" {
            // A distant spot that only one of them predicts.
            probabilities.slice_mut(s![0, 0, 0, 0]).fill(0.3);
            probabilities.slice_mut(s![1, 0, 0, 0]).fill(0.7);
        }
        probabilities
    });
    let (information, text) = crossval.find(&BestOptions::default()).unwrap();
    let names: Vec<&String> = information.all_results.keys().collect();
    assert_eq!(names, ["2d", "3d_fullres", "ensemble___2d___3d_fullres___0_1"]);
    let best = &information.best_model_or_ensemble;
    let members: Vec<&str> = best.selected_model_or_models.iter().map(|model| model.configuration.as_str()).collect();
    assert_eq!((members, best.result_on_crossval_pre_pp), (vec!["2d", "3d_fullres"], 1.0));
    assert!(information.all_results["2d"] < 1.0 && information.all_results["3d_fullres"] < 1.0);
    let work = crossval.work.root().display().to_string();
    for line in [
        format!(
            "nnunet-dist predict -r {work}/runs/2d -f 0 1 -i INPUT_FOLDER -o OUTPUT_FOLDER_MODEL_1 --save-probabilities"
        ),
        format!(
            "nnunet-dist ensemble -i OUTPUT_FOLDER_MODEL_1 OUTPUT_FOLDER_MODEL_2 -o OUTPUT_FOLDER --dataset-json {work}/dataset.json"
        ),
        format!(
            "nnunet-dist postprocess -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP --pp {work}/ensembles/ensemble___2d___3d_fullres___0_1/postprocessing.json"
        ),
    ] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in {text}");
    }
    let saved: Information = serde_json::from_slice(&fs::read(crossval.work.inference_information()).unwrap()).unwrap();
    assert_eq!(saved, information);

    // By itself, 3d_fullres improves with postprocessing.
    let alone =
        BestOptions { configurations: vec!["3d_fullres".into()], without_ensembles: true, ..Default::default() };
    let (information, text) = crossval.find(&alone).unwrap();
    let best = &information.best_model_or_ensemble;
    assert!(best.result_on_crossval_post_pp > best.result_on_crossval_pre_pp, "{best:?}");
    assert!(!text.contains("nnunet-dist ensemble") && text.contains("crossval_results_folds_0_1/postprocessing.json"));
}

#[test]
fn ties_go_to_the_simpler_configuration_and_folds_can_be_chosen() {
    let crossval = Crossval::new(|_, _, truth| believe(truth, |z, _, _| z.is_multiple_of(3).then_some(0.9)));
    let (information, _) = crossval.find(&BestOptions { folds: vec![1], ..Default::default() }).unwrap();
    assert_eq!(information.best_model_or_ensemble.selected_model_or_models[0].configuration, "2d");
    assert_eq!(information.folds, [1]);
    let held_out = HeldOutResults::open(&crossval.work, &[1]).unwrap();
    let folder = crossval.folder.path().join("gathered");
    let summary = accumulate(&held_out, "2d", &folder).unwrap();
    let names: Vec<_> = summary.metric_per_case.iter().map(|case| case.prediction_file.file_name().unwrap()).collect();
    assert_eq!(names, ["phantom_002.nii.gz", "phantom_003.nii.gz"]);
    assert!(folder.join("plans.json").is_file() && folder.join("dataset.json").is_file());
}

#[test]
fn missing_inputs_are_named_with_the_command_that_makes_them() {
    let crossval = Crossval::new(|_, _, truth| believe(truth, |_, _, _| None));
    let find = |flags: &[&str]| {
        let mut command = program("find-best-configuration");
        command.arg("-w").arg(crossval.work.root()).args(flags);
        command
    };
    refused(&mut find(&["-f", "2"]), 3, &["no fold 2", "0 to 1"]);
    refused(&mut find(&["-c", "4d"]), 3, &["4d", "available"]);
    refused(&mut find(&["-c", "2d", "2d"]), 3, &["2d is given twice"]);
    let validation = |fold| crossval.work.run("3d_fullres", FoldId::Number(fold)).validation();
    fs::remove_file(validation(1).join("phantom_003.npz")).unwrap();
    refused(&mut find(&[]), 3, &["3d_fullres: has no probabilities of phantom_003;"]);
    for file in ["phantom_000.npz", "phantom_001.npz"].map(|name| validation(0).join(name)) {
        fs::remove_file(file).unwrap();
    }
    fs::remove_file(validation(1).join("phantom_002.npz")).unwrap();
    refused(&mut find(&[]), 3, &["no probabilities", "--val --npz"]);
    succeed(&mut find(&["--no-ensembling"]));
    fs::copy(validation(1).join("phantom_003.nii.gz"), validation(0).join("phantom_003.nii.gz")).unwrap();
    refused(&mut find(&[]), 3, &["phantom_003", "two folds"]);
    fs::remove_dir_all(validation(0)).unwrap();
    refused(&mut find(&[]), 3, &["fold 0 has not been validated", "nnunet-dist train"]);
    fs::remove_dir_all(crossval.work.runs("3d_fullres")).unwrap();
    refused(&mut find(&[]), 3, &["3d_fullres has not been trained", "-c"]);

    let gather = |output: &Path| {
        let mut command = program("accumulate");
        command.args(["-c", "2d", "-w"]).arg(crossval.work.root()).arg("-o").arg(output);
        command
    };
    let output = crossval.folder.path().join("gathered");
    let said = succeed(&mut gather(&output));
    assert!(said.contains("4 cases in") && said.contains("mean Dice 1.0000"), "{said}");
    refused(&mut gather(&output), 3, &["gathered: is not empty"]);
}

/// Two folds of two configurations, trained for two steps.
#[test]
fn from_training_to_the_postprocessed_prediction_of_an_ensemble() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (raw, work) = (path("raw"), WorkDir::new(path("work")));
    PhantomOptions { train_cases: 4, test_cases: 2, shape: [16, 18, 16], seed: 7 }.generate(&raw).unwrap();
    let in_work = |subcommand: &str, flags: &[&str]| {
        let mut command = program(subcommand);
        command.arg("-w").arg(work.root()).args(flags);
        command
    };
    succeed(in_work("plan", &["-d"]).arg(&raw));
    write_json(&work.splits(), &splits()).unwrap();
    let mut plans: Value = serde_json::from_slice(&fs::read(work.plans()).unwrap()).unwrap();
    let configurations = ["2d", "3d_fullres"];
    for configuration in configurations {
        shrink(&mut plans["configurations"][configuration]);
    }
    plans["configurations"]["2d"]["batch_size"] = json!(2);
    fs::write(work.plans(), plans.to_string()).unwrap();
    succeed(&mut in_work("preprocess", &["-c", "2d", "3d_fullres"]));

    let train = |configuration: &str, fold: &str, flags: &[&str]| {
        let mut command = in_work("train", &["-c", configuration, "-f", fold, "--epochs", "1"]);
        command.args(["--iters-per-epoch", "2", "--val-iters", "1"]).args(flags);
        command
    };
    let validation = |configuration: &str, fold| work.run(configuration, FoldId::Number(fold)).validation();
    refused(&mut train("2d", "0", &["--val"]), 3, &["2d/fold_0/checkpoint_latest", "not been trained"]);
    for configuration in configurations {
        succeed(&mut train(configuration, "0", &["--npz"]));
    }
    for configuration in configurations {
        // Trained without --npz; --val with --npz adds the probabilities and changes nothing else.
        succeed(&mut train(configuration, "1", &[]));
        let summary = validation(configuration, 1).join("summary.json");
        let before = fs::read(&summary).unwrap();
        assert!(!validation(configuration, 1).join("phantom_002.npz").exists());
        succeed(&mut train(configuration, "1", &["--val", "--npz"]));
        assert_eq!(fs::read(&summary).unwrap(), before);
        assert!(validation(configuration, 1).join("phantom_002.npz").exists());
    }
    // The only epoch is also the best. A validation without --npz removes probabilities that may belong to other
    // weights.
    let said = succeed(&mut train("2d", "0", &["--val", "--val-best", "--npz"]));
    assert!(said.contains("mean Dice"), "{said}");
    succeed(&mut train("2d", "1", &["--val"]));
    assert!(!validation("2d", 1).join("phantom_002.npz").exists());
    succeed(&mut train("2d", "1", &["--val", "--npz"]));
    refused(&mut train("2d", "1", &["--val", "--resume"]), 2, &["--resume"]);

    let labels = read_labels(&validation("2d", 0).join("phantom_000.nii.gz")).unwrap();
    let mut archive = ProbabilityArchive::open(&validation("2d", 0).join("phantom_000.npz")).unwrap();
    let (z, y, x) = labels.data.dim();
    assert_eq!(archive.maps().unwrap().shape(), [3, z, y, x]);

    let said = succeed(&mut in_work("find-best-configuration", &[]));
    assert!(said.contains("ensemble___2d___3d_fullres___0_1") && said.contains("  best\n"), "{said}");
    let summary = Summary::load(&work.crossval("2d", "0_1").join("summary.json")).unwrap();
    assert_eq!(summary.metric_per_case.len(), 4);

    let mut members = Vec::new();
    for (configuration, fold) in [("2d", 0), ("2d", 1), ("3d_fullres", 0), ("3d_fullres", 1)] {
        let output = path(&format!("{configuration}_{fold}"));
        let run = work.run(configuration, FoldId::Number(fold));
        let mut predict = program("predict");
        predict.arg("-r").arg(run.root()).arg("-i").arg(raw.join("imagesTs")).arg("-o").arg(&output);
        succeed(predict.args(["--save-probabilities", "--no-tta"]));
        members.push(output);
    }
    let (merged, tidied) = (path("merged"), path("tidied"));
    let mut ensemble = program("ensemble");
    ensemble.arg("-i").args(&members).arg("-o").arg(&merged).arg("--dataset-json").arg(work.dataset_json());
    assert!(succeed(&mut ensemble).contains("2 cases in"));
    let information: Information = serde_json::from_slice(&fs::read(work.inference_information()).unwrap()).unwrap();
    let mut postprocess = program("postprocess");
    let file = &information.best_model_or_ensemble.postprocessing_file;
    succeed(postprocess.arg("-i").arg(&merged).arg("-o").arg(&tidied).arg("--pp").arg(file));
    let mut evaluate = program("evaluate");
    evaluate.arg("-p").arg(&tidied).arg("-g").arg(raw.join("labelsTs")).args(["--metrics", "all"]);
    assert!(succeed(&mut evaluate).contains("mean Dice"));
    assert_eq!(DatasetJson::load(&tidied.join("dataset.json")).unwrap().file_ending, ENDING);
}
