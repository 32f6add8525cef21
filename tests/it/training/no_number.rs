//! Runs with a NaN loss at some step: they stop, skip the step or roll back, and the inputs of the step are dumped.

use std::fs;
use std::process::Command;

use ndarray::{Array4, s};
use ndarray_npy::{read_npy, write_npy};
use nnunet_dist::dataset::Splits;
use nnunet_dist::work::RunDir;
use serde_json::Value;

use crate::job;
use crate::work;
use crate::work::Workshop;

/// Fills the outermost slice of a training case of fold 0 with NaN, so that only some patches contain it. Returns the
/// case's name.
fn spoil(shop: &Workshop) -> String {
    let splits = Splits::load(&shop.work.splits()).unwrap();
    let case = splits.fold(0).unwrap().0[0].clone();
    let path = shop.store().join(format!("{case}.npy"));
    let mut data: Array4<f32> = read_npy(&path).unwrap();
    data.slice_mut(s![.., 0, .., ..]).fill(f32::NAN);
    write_npy(&path, &data).unwrap();
    forget_checksums(shop);
    case
}

/// The arrays are those of a preprocessing that made NaN.
fn forget_checksums(shop: &Workshop) {
    let _ = fs::remove_file(shop.store().join("checksums"));
}

fn train(shop: &Workshop, run: &RunDir, policy: &str) -> Command {
    let mut command = shop.train(run);
    command.args(["--epochs", "6", "--iters-per-epoch", "4", "--val-iters", "0", "--augment", "none"]);
    command.args(["--on-nan", policy]);
    command
}

fn run_of(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn losses(run: &RunDir) -> Vec<Value> {
    let log = fs::read_to_string(run.log()).unwrap();
    log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect()
}

fn nan_dumps(run: &RunDir) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = fs::read_dir(run.nan_dumps()).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn a_run_ends_at_the_step_and_the_replay_names_the_sample() {
    let shop = Workshop::new();
    let case = spoil(&shop);
    let run = shop.run_dir("run");
    let (code, stderr) = run_of(train(&shop, &run, "stop"));
    assert_eq!(code, Some(3), "{stderr}");
    let error = stderr.lines().last().unwrap();
    assert!(error.contains(&case) && error.contains("the loss is NaN or infinite"), "{error}");
    let [dump] = &nan_dumps(&run)[..] else { panic!("one dump: {:?}", nan_dumps(&run)) };
    assert!(error.contains(dump.to_str().unwrap()), "{error}");

    let output = work::program().arg("replay").arg(dump).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let marked: Vec<&str> = table.lines().filter(|line| line.ends_with("<-")).collect();
    assert!(!marked.is_empty() && marked.iter().all(|line| line.contains(&case)), "{table}");
    assert!(table.contains("all weights are finite"), "{table}");
    assert!(table.contains("non-finite gradients: "), "{table}");
}

#[test]
fn a_step_is_skipped_and_under_mpirun_on_all_ranks() {
    let shop = Workshop::new();
    let case = spoil(&shop);
    let run = shop.run_dir("run");
    let (code, stderr) = run_of(train(&shop, &run, "skip"));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("the step is skipped") && stderr.contains(&case), "{stderr}");
    let log = losses(&run);
    assert_eq!(log.len(), 6);
    assert!(log.iter().all(|epoch| epoch["train_loss"].is_f64()), "{log:?}");
    assert!(log.iter().any(|epoch| epoch["skipped_steps"].as_u64() > Some(0)), "{log:?}");

    let Some(launcher) = job::launcher() else { return };
    let many = shop.run_dir("many");
    let mut rank = train(&shop, &many, "skip");
    rank.args(["--batch-size", "1"]);
    let job = job::observe(job::in_parallel(launcher, 2, &[], &rank));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    let skipped = |run: &RunDir| losses(run).iter().map(|epoch| epoch["skipped_steps"].clone()).collect::<Vec<_>>();
    assert_eq!(skipped(&many), skipped(&run));
    let batches = |number: usize| nan_dumps(&many)[0].join(format!("batches_rank_{number}.safetensors")).exists();
    assert!(batches(0) && batches(1) && !batches(2));
}

#[test]
fn a_run_rolls_back_with_other_samples_a_limited_number_of_times() {
    let shop = Workshop::new();
    spoil(&shop);
    let run = shop.run_dir("run");
    let (code, stderr) = run_of(train(&shop, &run, "rollback"));
    let goes_back = stderr.matches("rolling back to the start of epoch").count();
    assert!(goes_back > 0, "{stderr}");
    // It depends on the seed whether other samples avoid the slice; both results are correct.
    match code {
        Some(0) => assert!(losses(&run).len() == 6 && losses(&run).iter().all(|epoch| epoch["train_loss"].is_f64())),
        Some(3) => assert!(goes_back >= 3, "{stderr}"),
        other => panic!("{other:?}: {stderr}"),
    }

    // Every patch contains it.
    for case in Splits::load(&shop.work.splits()).unwrap().fold(0).unwrap().0 {
        let path = shop.store().join(format!("{case}.npy"));
        let data: Array4<f32> = read_npy(&path).unwrap();
        write_npy(&path, &data.mapv(|_| f32::NAN)).unwrap();
    }
    forget_checksums(&shop);
    let run = shop.run_dir("hopeless");
    let (code, stderr) = run_of(train(&shop, &run, "rollback"));
    assert_eq!(code, Some(3), "{stderr}");
    assert_eq!(stderr.matches("rolling back to the start of epoch 1").count(), 3, "{stderr}");
}

#[test]
fn ranks_under_mpirun_roll_back_together_at_the_same_steps() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    spoil(&shop);
    let [one, two] = ["one", "two"].map(|name| shop.run_dir(name));
    let (code, alone) = run_of(train(&shop, &one, "rollback"));
    let mut rank = train(&shop, &two, "rollback");
    rank.args(["--batch-size", "1"]);
    let job = job::observe(job::in_parallel(launcher, 2, &[], &rank));
    // The batches of two ranks together are those of one rank, so both runs roll back at the same steps.
    let returns = |output: &str| output.matches("rolling back to the start of epoch").count();
    assert!(returns(&alone) > 0, "{alone}");
    assert_eq!(returns(&job.output), returns(&alone), "{}\n{alone}", job.output);
    assert_eq!(job.status.success(), code == Some(0), "{}\n{}", job.status, job.output);
    assert_eq!(losses(&two).len(), losses(&one).len());
}
