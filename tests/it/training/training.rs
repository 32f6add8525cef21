//! Whole training runs of the built program: their output files, reproducibility, data parallelism, interruption and
//! resuming.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nnunet_dist::augment::Pipeline;
use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist::config::RunConfig;
use nnunet_dist::dataset::Splits;
use nnunet_dist::eval::Summary;
use nnunet_dist::loader::{Loader, LoaderOptions, Oversampling, SampleId, Sampler, SamplerOptions, Shard};
use nnunet_dist::rng::Purpose;
use nnunet_dist::store::NativeStore;
use nnunet_dist::work::RunDir;
use serde_json::{Map, Value, json};

use crate::job;
use crate::work;
use crate::work::{CONFIGURATION, Workshop, tensors_of, wait_for_epochs};

/// Keys of a log line as documented in `docs/reference/files.md`, in this order.
const LOG_KEYS: [&str; 17] = [
    "epoch",
    "train_loss",
    "val_loss",
    "pseudo_dice",
    "ema_pseudo_dice",
    "lr",
    "samples_per_s",
    "step_s",
    "data_wait_s",
    "comm_s",
    "straggler_s",
    "checkpoint_s",
    "epoch_s",
    "gradient_norm",
    "loss_scale",
    "skipped_steps",
    "world_size",
];

/// Keys whose values differ from run to run.
const TIMINGS: [&str; 7] =
    ["samples_per_s", "step_s", "data_wait_s", "comm_s", "straggler_s", "checkpoint_s", "epoch_s"];

#[test]
fn a_run_without_a_launcher_is_one_process_and_writes_all_its_files() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let stdout = succeed(shop.train(&run));

    let config = fs::read_to_string(run.config()).unwrap();
    assert!(stdout.starts_with(&config), "{stdout}");
    assert_eq!(RunConfig::load(&run.config()).unwrap().to_toml(), config);

    let log = log(&run);
    assert_eq!(log.len(), 3);
    for (epoch, line) in log.iter().enumerate() {
        assert_eq!(line.keys().collect::<Vec<_>>(), LOG_KEYS);
        assert_eq!((&line["epoch"], &line["world_size"]), (&json!(epoch), &json!(1)));
        assert_eq!(line["pseudo_dice"].as_array().unwrap().len(), 2);
        assert!(line["train_loss"].is_f64() && line["val_loss"].is_f64(), "{line:?}");
    }

    for checkpoint in [run.checkpoint_latest(), run.checkpoint_best()] {
        assert_eq!(SavedModel::read(&checkpoint).unwrap().description.configuration, CONFIGURATION);
    }
    assert!(fs::read(run.progress()).unwrap().starts_with(b"\x89PNG"));

    let splits = Splits::load(&shop.work.splits()).unwrap();
    let (_, held_out) = splits.fold(0).unwrap();
    let mut expected: Vec<String> = held_out.iter().map(|case| format!("{case}.nii.gz")).collect();
    expected.push("summary.json".into());
    assert_eq!(names(&run.validation()), expected);
    let summary = Summary::load(&run.validation().join("summary.json")).unwrap();
    assert!(stdout.contains(&format!("mean Dice {:.4}", summary.mean_dice())), "{stdout}");

    assert_eq!(unfinished(&shop.path("")), Vec::<String>::new());
}

#[test]
fn the_same_run_twice_is_the_same() {
    let shop = Workshop::new();
    let runs = ["first", "second"].map(|name| shop.run_dir(name));
    for run in &runs {
        succeed(shop.train(run));
    }
    assert_same_runs(&runs[0], &runs[1]);
}

#[test]
fn a_killed_run_resumes_with_the_same_results() {
    let shop = Workshop::new();
    let [whole, broken] = ["whole", "broken"].map(|name| shop.run_dir(name));
    let train = |run: &RunDir, flags: &[&str]| {
        let mut command = shop.train(run);
        command.args(["--epochs", "8"]).args(flags);
        command
    };
    succeed(train(&whole, &[]));

    // The last checkpoint is then that of epoch 2, so the log is ahead of it.
    let mut killed = train(&broken, &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_epochs(&broken, 3);
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success(), "it was over before it could be killed");
    succeed(train(&broken, &["--resume"]));
    assert_same_runs(&whole, &broken);

    // A finished run has nothing left to train.
    let before = fs::read(broken.log()).unwrap();
    succeed(train(&broken, &["--resume"]));
    assert!(fs::read(broken.log()).unwrap() == before);
}

#[test]
fn only_a_checkpoint_of_the_same_plans_is_resumed() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let resume = || {
        let mut command = shop.train(&run);
        command.arg("--resume");
        command
    };
    let path = run.checkpoint_latest().display().to_string();
    refused(resume(), 3, &[&path, "nothing to resume from"]);

    succeed(shop.train(&run));
    let before = fs::read(run.log()).unwrap();
    let plans = fs::read(shop.work.plans()).unwrap();
    shop.edit_plans(|plans| plans["architecture"]["arch_kwargs"]["features_per_stage"] = json!([8, 16, 24]));
    refused(resume(), 3, &[&path, "this dataset and configuration"]);
    // The weights would fit.
    fs::write(shop.work.plans(), &plans).unwrap();
    shop.edit_plans(|plans| plans["patch_size"] = json!([16, 20, 16]));
    refused(resume(), 3, &[&path, "this dataset and configuration"]);
    assert!(fs::read(run.log()).unwrap() == before, "a refused run does not change the log");

    // The number of samples per step may change when a run is resumed.
    fs::write(shop.work.plans(), &plans).unwrap();
    shop.edit_plans(|plans| plans["batch_size"] = json!(9));
    succeed(resume());
}

#[test]
fn two_processes_under_mpirun_train_as_one_with_twice_the_batch() {
    let shop = Workshop::new();
    assert_eq!(samples(&shop, 1), samples(&shop, 2));
    trains_as_one(&shop, 2, &[]);
}

/// More processes than this machine has cores, in two batches per step.
#[test]
fn eight_processes_under_mpirun_train_as_one_with_sixteen_times_the_batch() {
    trains_as_one(&Workshop::new(), 8, &["--gradient-accumulation-steps", "2", "--epochs", "2", "--val-iters", "1"]);
}

/// Each process caches its part of the cases in memory, read from local copies that the processes made together.
#[test]
fn partitioned_cached_and_staged_cases_train_as_one() {
    let shop = Workshop::new();
    let disk = shop.path("disk");
    let stage_dir = format!("--local-cache-dir={}", disk.display());
    trains_as_one(&shop, 2, &["--shard", "epoch", "--cache-gb", "0.5", &stage_dir]);
    let staged = fs::read_dir(&disk).unwrap().next().unwrap().unwrap().path();
    let mut stored = names(&shop.store());
    stored.retain(|name| name.contains('.'));
    assert_eq!(names(&staged), stored, "the files of the cases, without manifest and checksums");
    assert_eq!(unfinished(&shop.path("")), Vec::<String>::new());
}

/// Trains with one process and with several of one sample per batch, and compares the losses.
#[track_caller]
fn trains_as_one(shop: &Workshop, processes: usize, flags: &[&str]) {
    let Some(launcher) = job::launcher() else { return };
    let [one, many] = ["one", "many"].map(|name| shop.run_dir(name));
    // A batch of one process must hold all samples of a step, as batch Dice is over the whole batch.
    let mut rank = shop.train(&one);
    rank.args(flags).args(["--batch-size", &processes.to_string()]);
    succeed(rank);
    let mut rank = shop.train(&many);
    rank.args(flags).args(["--batch-size", "1"]);
    let job = job::observe(job::in_parallel(launcher, processes, &[], &rank));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    assert_eq!(job.output.matches("run directory: ").count(), 1, "only one rank prints\n{}", job.output);

    let (one, many) = (log(&one), log(&many));
    assert_eq!(one.len(), many.len());
    for (one, many) in one.iter().zip(&many) {
        assert_eq!((&one["world_size"], &many["world_size"]), (&json!(1), &json!(processes)));
        for key in ["train_loss", "val_loss"] {
            let [one, many] = [one, many].map(|line| line[key].as_f64().unwrap());
            assert!((one - many).abs() < 1e-3, "{key}: {one} and {many}");
        }
    }
}

#[test]
fn missing_and_wrong_inputs_are_one_line_errors() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let train = |flags: &[&str]| {
        let mut command = work::program();
        command.args(["train", "-w"]).arg(shop.work.root()).arg("--run-dir").arg(run.root()).args(flags);
        command
    };
    let usual = ["-c", CONFIGURATION, "-f", "0"];
    let with = |flags: &[&'static str]| train(&[&usual, flags].concat());

    misused(with(&["--lr", "nought"]), "--lr");
    misused(with(&["--batch-size=-1"]), "--batch-size");
    misused(with(&["--device", "abacus"]), "--device");
    misused(train(&["-c", CONFIGURATION, "-f", "first"]), "--fold");
    misused(with(&["--amp", "--precision", "fp32"]), "--precision");
    refused(with(&["--epochs", "0"]), 3, &["training.epochs", "at least 1"]);
    for format in ["tf32", "amp-fp16"] {
        refused(with(&["--precision", format]), 3, &["`precision`", format, "requires a GPU", "fp32 or amp-bf16"]);
    }
    if !cfg!(feature = "cuda") {
        refused(with(&["--device", "cuda", "--amp"]), 4, &["no cuda support", "--features cuda"]);
    }

    refused(train(&["-c", "4d_fullres", "-f", "0"]), 3, &["4d_fullres", "available: 3d_fullres"]);
    refused(train(&["-c", CONFIGURATION, "-f", "5"]), 3, &["no fold 5", "0 to 4"]);
    let nowhere = shop.path("nowhere");
    let mut command = work::program();
    command.args(["train", "-w"]).arg(&nowhere).args(usual);
    refused(command, 3, &[nowhere.to_str().unwrap(), "`nnunet-dist plan`"]);

    let description = fs::read_to_string(shop.work.dataset_json()).unwrap();
    let mut without_core: Value = serde_json::from_str(&description).unwrap();
    without_core["labels"].as_object_mut().unwrap().remove("core");
    fs::write(shop.work.dataset_json(), without_core.to_string()).unwrap();
    refused(with(&[]), 3, &[shop.store().to_str().unwrap(), "class 2", "preprocess again"]);
    fs::write(shop.work.dataset_json(), description).unwrap();
    fs::rename(shop.store(), shop.path("elsewhere")).unwrap();
    refused(with(&[]), 3, &[shop.store().to_str().unwrap(), "preprocess the dataset first"]);
    assert!(!run.root().exists(), "a run that never began leaves no folder");
}

/// Runs a command that must succeed, and returns its standard output.
#[track_caller]
fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must exit with this code and one error line with all of `words`.
#[track_caller]
fn refused(mut command: Command, code: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && stderr.lines().last() == Some(errors[0]), "{stderr}");
    for word in words {
        assert!(errors[0].contains(word), "no `{word}` in {stderr}");
    }
}

/// Runs a command whose error must name this flag.
#[track_caller]
fn misused(mut command: Command, flag: &str) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let first = stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("error: ") && first.contains(flag), "{stderr}");
}

/// Asserts that logs without timings, weights, optimizer and evaluation of two runs are equal.
#[track_caller]
fn assert_same_runs(one: &RunDir, other: &RunDir) {
    let [one_log, other_log] = [one, other].map(|run| {
        let mut lines = log(run);
        for line in &mut lines {
            line.retain(|key, _| !TIMINGS.contains(&key.as_str()));
        }
        lines
    });
    assert_eq!(one_log, other_log);
    let is_same = |path: fn(&RunDir) -> std::path::PathBuf| tensors_of(&path(one)) == tensors_of(&path(other));
    assert!(is_same(RunDir::checkpoint_latest) && is_same(RunDir::checkpoint_best));
    let [one, other] = [one, other].map(|run| Summary::load(&run.validation().join("summary.json")).unwrap());
    assert_eq!(one.mean_dice(), other.mean_dice());
}

fn log(run: &RunDir) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.log()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The samples of two epochs of three steps with a global batch of two, in the order of their numbers.
fn samples(shop: &Workshop, world_size: usize) -> Vec<SampleId> {
    let store = Arc::new(NativeStore::open(&shop.store()).unwrap());
    let splits = Splits::load(&shop.work.splits()).unwrap();
    let (cases, _) = splits.fold(0).unwrap();
    let pipeline = Arc::new(Pipeline::nnunet([16; 3], &[0, 1, 2], &[false]));
    let drawn = (0..world_size).flat_map(|rank| {
        let options = SamplerOptions {
            seed: 1234,
            purpose: Purpose::TrainSample,
            patch_size: pipeline.read_patch_size(),
            final_patch_size: pipeline.patch_size(),
            global_batch_size: 2,
            oversample_foreground: 0.33,
            oversampling: Oversampling::Deterministic,
            shard: Shard::Random,
        };
        let sampler = Sampler::new(store.clone(), cases.to_vec(), options).unwrap();
        let options = LoaderOptions {
            rank,
            world_size,
            batch_per_rank: 2 / world_size,
            workers: 2,
            prefetch: 2,
            epochs: 0..2,
            first_iteration: 0,
            iterations_per_epoch: 3,
        };
        let mut loader = Loader::start(store.clone(), sampler, pipeline.clone(), options).unwrap();
        (0..6).flat_map(|_| loader.next().unwrap().samples).collect::<Vec<_>>()
    });
    let mut drawn: Vec<SampleId> = drawn.collect();
    drawn.sort_by_key(|sample| (sample.epoch, sample.index));
    drawn
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Temporary files below a folder.
fn unfinished(folder: &Path) -> Vec<String> {
    let (folders, files): (Vec<_>, Vec<_>) = names(folder).into_iter().partition(|name| folder.join(name).is_dir());
    let here = files.into_iter().filter(|name| name.starts_with(".partial-"));
    here.chain(folders.iter().flat_map(|name| unfinished(&folder.join(name)))).collect()
}

/// All cases may be training cases; then nothing is validated. Without training cases, training is an error.
#[test]
fn a_split_may_hold_nothing_out() {
    let shop = Workshop::new();
    let cases = Splits::load(&shop.work.splits()).unwrap().fold(0).unwrap().0.to_vec();
    fs::write(shop.work.splits(), json!([{"train": cases, "val": []}]).to_string()).unwrap();
    let run = shop.run_dir("run");
    let stdout = succeed(shop.train(&run));
    assert!(!stdout.contains("mean Dice") && !run.validation().join("summary.json").exists(), "{stdout}");

    fs::write(shop.work.splits(), json!([{"train": [], "val": cases}]).to_string()).unwrap();
    let output = shop.train(&shop.run_dir("empty")).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}
