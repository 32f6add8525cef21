//! Training targets and options, from the raw dataset to the evaluation: regions, ignored voxels, both, and every loss,
//! optimizer, schedule, preset and sampling mode.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use nnunet_dist::image::{read_labels, write_labels};
use nnunet_dist::work::RunDir;
use serde_json::{Map, Value, json};

use crate::job;
use crate::work::{Workshop, program, tensors_of};

/// The ignore label.
const IGNORE: i16 = 3;

/// Replaces a dataset's labels, and if there is an ignore label, marks a corner of every label map with it.
fn declare(dataset: &Path, labels: &Value, regions_class_order: Option<&Value>) {
    let path = dataset.join("dataset.json");
    let mut description: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    description["labels"] = labels.clone();
    if let Some(order) = regions_class_order {
        description["regions_class_order"] = order.clone();
    }
    fs::write(&path, description.to_string()).unwrap();
    if labels.get("ignore").is_none() {
        return;
    }
    for entry in fs::read_dir(dataset.join("labelsTr")).unwrap() {
        let path = entry.unwrap().path();
        let mut map = read_labels(&path).unwrap();
        let middle = map.data.dim().2 / 2;
        map.data.slice_mut(ndarray::s![.., .., ..middle]).fill(IGNORE);
        write_labels(&path, &map).unwrap();
    }
}

#[test]
fn regions_are_trained_predicted_and_evaluated() {
    let labels = json!({"background": 0, "whole": [1, 2], "core": 2});
    from_dataset_to_summary(&labels, Some(&json!([1, 2])), &["(1, 2)", "2"]);
}

#[test]
fn ignored_voxels_are_neither_predicted_nor_evaluated() {
    let labels = json!({"background": 0, "organ": 1, "core": 2, "ignore": IGNORE});
    from_dataset_to_summary(&labels, None, &["1", "2"]);
}

#[test]
fn regions_and_ignored_voxels_go_together() {
    let labels = json!({"background": 0, "whole": [1, 2], "core": 2, "ignore": IGNORE});
    from_dataset_to_summary(&labels, Some(&json!([1, 2])), &["(1, 2)", "2"]);
}

#[track_caller]
fn from_dataset_to_summary(labels: &Value, order: Option<&Value>, classes: &[&str]) {
    let shop = Workshop::with(|dataset| declare(dataset, labels, order));
    let run = shop.run_dir("run");
    succeed(shop.train(&run));
    for line in log(&run) {
        assert!(line["train_loss"].as_f64().unwrap().is_finite() && line["val_loss"].is_f64(), "{line:?}");
        assert_eq!(line["pseudo_dice"].as_array().unwrap().len(), classes.len(), "{line:?}");
    }
    assert_summary(&run.validation(), &shop.dataset().join("labelsTr"), classes);

    let predictions = shop.path("predictions");
    let mut predict = program();
    predict.args(["predict", "-r"]).arg(run.root()).arg("-i").arg(shop.dataset().join("imagesTr"));
    predict.arg("-o").arg(&predictions);
    succeed(predict);
    let mut evaluate = program();
    evaluate.args(["evaluate", "-p"]).arg(&predictions).arg("-g").arg(shop.dataset().join("labelsTr"));
    succeed(evaluate);
    assert_summary(&predictions, &shop.dataset().join("labelsTr"), classes);
}

/// Asserts that predictions have only foreground labels, and that each is evaluated in all voxels that are not ignored.
#[track_caller]
fn assert_summary(folder: &Path, truth: &Path, classes: &[&str]) {
    let summary: Value = serde_json::from_slice(&fs::read(folder.join("summary.json")).unwrap()).unwrap();
    let cases = summary["metric_per_case"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let file = Path::new(case["prediction_file"].as_str().unwrap()).file_name().unwrap();
        let predicted = read_labels(&folder.join(file)).unwrap().data;
        let labels: BTreeSet<i16> = predicted.iter().copied().collect();
        assert!(labels.is_subset(&BTreeSet::from([0, 1, 2])), "{labels:?} in {}", file.display());
        let truth = read_labels(&truth.join(file)).unwrap().data;
        let counted = truth.iter().filter(|label| **label != IGNORE).count() as u64;
        assert!(case["metrics"].as_object().unwrap().keys().eq(classes), "{case}");
        for class in classes {
            let count = |name: &str| case["metrics"][class][name].as_u64().unwrap();
            assert_eq!(["TP", "FP", "FN", "TN"].map(count).iter().sum::<u64>(), counted, "{class}: {case}");
        }
    }
}

#[test]
fn every_option_trains_and_is_saved_with_the_run() {
    let shop = Workshop::new();
    let choices: [(&[&str], [&str; 2]); 9] = [
        (&["--loss", "dice_topk", "--batch-dice", "false"], ["kind = \"dice_topk\"", "batch_dice = false"]),
        (&["--loss", "dice_focal", "--include-background"], ["kind = \"dice_focal\"", "include_background = true"]),
        (&["--loss", "ce", "--optimizer", "adamw"], ["kind = \"ce\"", "kind = \"adamw\""]),
        (&["--loss", "dice", "--optimizer", "adam"], ["kind = \"dice\"", "kind = \"adam\""]),
        (&["--optimizer", "radam", "--lookahead"], ["kind = \"radam\"", "lookahead = true"]),
        (
            &["--scheduler", "cosine_annealing", "--warmup-steps", "3"],
            ["kind = \"cosine_annealing\"", "warmup_steps = 3"],
        ),
        (&["--scheduler", "cosine", "--augment", "strong"], ["kind = \"cosine\"", "augmentation = \"strong\""]),
        (&["--scheduler", "none", "--augment", "basic"], ["kind = \"none\"", "augmentation = \"nvidia\""]),
        (&["--oversampling", "probabilistic", "--augment", "none"], ["\"probabilistic\"", "augmentation = \"none\""]),
    ];
    for (number, (flags, lines)) in choices.into_iter().enumerate() {
        let run = shop.run_dir(&format!("run_{number}"));
        let mut train = shop.train(&run);
        train.args(["--epochs", "2", "--val-iters", "1"]).args(flags);
        succeed(train);
        let config = fs::read_to_string(run.config()).unwrap();
        for line in lines {
            assert!(config.contains(line), "no `{line}` in\n{config}");
        }
        let log = log(&run);
        let loss = |line: &Map<String, Value>| line["train_loss"].as_f64().unwrap();
        assert!(log.len() == 2 && log.iter().all(|line| loss(line).is_finite()), "{log:?}");
    }
    let rates = |number: usize| log(&shop.run_dir(&format!("run_{number}")))[0]["lr"].as_f64().unwrap();
    assert!((rates(5) - 0.01 / 3.0).abs() < 1e-12, "{}", rates(5));
}

#[test]
fn lookahead_goes_on_from_a_checkpoint() {
    let shop = Workshop::new();
    let [whole, broken] = ["whole", "broken"].map(|name| shop.run_dir(name));
    let train = |run: &RunDir, flags: &[&str]| {
        let mut command = shop.train(run);
        // A checkpoint after four steps, between two updates of the slow weights.
        command.args(["--optimizer", "radam", "--lookahead"]).args(flags);
        succeed(command);
    };
    train(&broken, &["--epochs", "1", "--scheduler", "none"]);
    train(&broken, &["--epochs", "4", "--resume", "--scheduler", "none"]);
    train(&whole, &["--epochs", "4", "--scheduler", "none"]);
    let weights = |run: &RunDir| tensors_of(&run.checkpoint_latest());
    assert!(weights(&whole) == weights(&broken), "the resumed run differs");
}

#[test]
fn incompatible_options_are_one_line_errors() {
    let labels = json!({"background": 0, "whole": [1, 2], "core": 2});
    let shop = Workshop::with(|dataset| declare(dataset, &labels, Some(&json!([1, 2]))));
    let run = shop.run_dir("run");
    let refused = |settings: &str, flags: &[&str], words: &[&str]| {
        let usual = fs::read_to_string(shop.settings()).unwrap();
        fs::write(shop.settings(), usual.clone() + settings).unwrap();
        let mut command = shop.train(&run);
        let output = command.args(flags).output().unwrap();
        fs::write(shop.settings(), usual).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && words.iter().all(|word| errors[0].contains(word)), "{stderr}");
    };
    refused("", &["--loss", "dice_topk"], &["`loss.kind`", "regions"]);
    refused("[loss]\nclass_weights = [1, 2]\n", &[], &["`loss.class_weights`", "regions"]);
    refused("[loss]\nclass_weights = [-1]\n", &[], &["`loss.class_weights` is -1"]);
    refused("[loss]\nclass_weights = [1]\nkind = 'dice'\n", &[], &["`loss.class_weights`", "cross-entropy"]);
    refused("[loss]\ntopk_percent = 0\n", &[], &["`loss.topk_percent` is 0"]);
    refused("", &["--warmup-steps", "12"], &["`schedule.warmup_steps` is 12"]);

    // A dataset that has an ignore label since preprocessing.
    let path = shop.work.dataset_json();
    let mut description: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    description["labels"]["ignore"] = json!(IGNORE);
    fs::write(&path, description.to_string()).unwrap();
    refused("", &[], &["ignore label", "preprocess again"]);
}

#[test]
fn top_k_voxels_are_those_of_all_ranks_under_mpirun() {
    trains_as_one_under_mpirun(&Workshop::new(), &["--loss", "dice_topk"]);
}

#[test]
fn regions_and_ignored_voxels_train_as_one_under_mpirun() {
    let labels = json!({"background": 0, "whole": [1, 2], "core": 2, "ignore": IGNORE});
    let shop = Workshop::with(|dataset| declare(dataset, &labels, Some(&json!([1, 2]))));
    trains_as_one_under_mpirun(&shop, &["--loss", "dice_focal", "--oversampling", "probabilistic"]);
    let shop = Workshop::with(|dataset| declare(dataset, &labels, Some(&json!([1, 2]))));
    trains_as_one_under_mpirun(&shop, &[]);
}

/// Two processes with one sample each train like one process with two samples.
#[track_caller]
fn trains_as_one_under_mpirun(shop: &Workshop, flags: &[&str]) {
    let Some(launcher) = job::launcher() else { return };
    let [one, two] = ["one", "two"].map(|name| shop.run_dir(name));
    let train = |run: &RunDir, batch_size: &str| {
        let mut command = shop.train(run);
        command.args(["--batch-size", batch_size, "--val-iters", "1"]).args(flags);
        command
    };
    succeed(train(&one, "2"));
    let job = job::observe(job::in_parallel(launcher, 2, &[], &train(&two, "1")));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    for (one, two) in log(&one).iter().zip(&log(&two)) {
        for key in ["train_loss", "val_loss"] {
            let [one, two] = [one, two].map(|line| line[key].as_f64().unwrap());
            assert!((one - two).abs() < 1e-3, "{flags:?}: {key}: {one} and {two}");
        }
    }
}

#[track_caller]
fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn log(run: &RunDir) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.log()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
