//! The scripts in `slurm/`, submitted to a real Slurm on the hosts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::eval::Summary;
use nnunet_dist::work::RunDir;
use serde_json::{Value, json};

use super::hosts::{Cluster, is_full, is_possible, succeed};
use super::runs::{HOSTS, assert_same_losses, count_steps, share, train_alone};
use crate::work::{CONFIGURATION, Workshop, program};

/// Slurm checks time limits once a minute, and takes half a minute to declare a node down.
const PATIENCE: Duration = Duration::from_secs(240);

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/slurm");

/// One node per rank.
const SPREAD: [&str; 3] = ["--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=1"];

/// The summary over all held-out cases of a configuration, within its runs.
const CROSSVAL_RESULTS: &str = "crossval_results_folds_0_1_2_3_4/summary.json";

/// The host with the fault; the first one runs the controller and the batch script.
const VICTIM: usize = 2;

#[test]
fn a_batch_job_trains_over_nodes_with_srun_and_with_mpirun() {
    let Some(slurm) = Slurm::up() else { return };
    let shop = Workshop::new();
    let alone = train_alone(&shop);
    for starter in ["srun", "mpirun"] {
        let run = shop.run_dir(starter);
        let job = slurm.train(&shop, &run, &SPREAD, &[("LAUNCH", starter)]);
        slurm.ends(&shop, &job, "COMPLETED");
        assert_same_losses(&alone, &run);
    }
}

#[test]
fn a_job_at_its_time_limit_is_requeued_and_ends_with_the_same_losses() {
    let Some(slurm) = Slurm::up() else { return };
    let shop = Workshop::new();
    let alone = train_alone(&shop);
    for starter in ["srun", "mpirun"] {
        let run = shop.run_dir(starter);
        let limits = ["--time=1", "--signal=B:USR1@45"];
        let job = slurm.train(&shop, &run, &[&SPREAD[..], &limits].concat(), &[("LAUNCH", starter)]);
        wait_for("some steps", || count_steps(&run) >= 5);
        // Otherwise the job would finish before its time limit.
        slurm.cluster.signal(VICTIM, "STOP");
        wait_for("the signal", || log(&shop).contains("asked to stop"));
        slurm.cluster.signal(VICTIM, "CONT");
        slurm.ends(&shop, &job, "COMPLETED");
        assert!(slurm.show(&job).contains(" Restarts=1 "), "{}", slurm.show(&job));
        assert!(log(&shop).contains("resuming at epoch "), "{}", log(&shop));
        assert_same_losses(&alone, &run);
        remove_logs(&shop);
    }
}

#[test]
fn a_job_that_loses_a_node_is_requeued_and_ends_with_the_same_losses() {
    let Some(slurm) = Slurm::up() else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let job = slurm.train(&shop, &run, &SPREAD, &[]);
    wait_for("some steps", || count_steps(&run) >= 5);
    slurm.cluster.power_off(VICTIM);
    wait_for("the requeue", || slurm.state(&job) == "PENDING");
    succeed(slurm.cluster.tool("slurm.sh", &["boot", &slurm.cluster.host(VICTIM)]));
    slurm.ends(&shop, &job, "COMPLETED");
    assert!(log(&shop).contains("resuming at epoch "), "{}", log(&shop));
    assert_same_losses(&train_alone(&shop), &run);
}

#[test]
fn only_transient_failures_are_retried_a_limited_number_of_times() {
    let Some(slurm) = Slurm::up() else { return };
    let shop = Workshop::new();
    for (code, attempts) in [(75, 2), (3, 1)] {
        let failing = shop.path("failing");
        fs::write(&failing, format!("#!/bin/sh\necho attempt\nexit {code}\n")).unwrap();
        fs::set_permissions(&failing, PermissionsExt::from_mode(0o755)).unwrap();
        let settings = [("PROGRAM", failing.to_str().unwrap()), ("MAX_RETRIES", "1")];
        let job = slurm.train(&shop, &shop.run_dir("run"), &["--cpus-per-task=1"], &settings);
        slurm.ends(&shop, &job, "FAILED");
        assert!(slurm.show(&job).contains(&format!(" ExitCode={code}:0 ")), "{}", slurm.show(&job));
        assert_eq!(log(&shop).matches("attempt").count(), attempts, "{}", log(&shop));
        remove_logs(&shop);
    }
}

#[test]
fn cross_validation_trains_an_array_of_folds_and_evaluates_them_together() {
    let Some(slurm) = Slurm::up() else { return };
    let shop = Workshop::new();
    slurm.cross_validate(&shop, &[]);
    let runs = shop.work.root().join("runs").join(CONFIGURATION);
    let all = Summary::load(&runs.join(CROSSVAL_RESULTS)).unwrap();
    let folds = (0..5).map(|fold| Summary::load(&runs.join(format!("fold_{fold}/validation/summary.json"))).unwrap());
    // One case per fold.
    let mean = folds.map(|summary| summary.mean_dice()).sum::<f64>() / 5.0;
    assert!((all.mean_dice() - mean).abs() < 1e-6, "{} instead of {mean}", all.mean_dice());
}

#[test]
fn one_array_trains_two_configurations_and_the_best_of_them_predicts() {
    let Some(slurm) = Slurm::up() else { return };
    let shop = Workshop::new();
    let plans = shop.work.plans();
    let mut value: Value = serde_json::from_slice(&fs::read(&plans).unwrap()).unwrap();
    value["configurations"]["again"] = json!({ "inherits_from": CONFIGURATION });
    fs::write(&plans, value.to_string()).unwrap();
    let (images, output) = (shop.dataset().join("imagesTr"), shop.path("predicted"));
    let both = format!("{CONFIGURATION} again");
    let folders = [("INPUT", images.to_str().unwrap()), ("OUTPUT", output.to_str().unwrap())];
    slurm.cross_validate(&shop, &[&[("CONFIG", both.as_str())], &folders[..]].concat());
    for configuration in [CONFIGURATION, "again"] {
        let results = shop.work.root().join("runs").join(configuration).join(CROSSVAL_RESULTS);
        assert_eq!(Summary::load(&results).unwrap().metric_per_case.len(), 5, "{configuration}");
    }
    let information = fs::read_to_string(shop.work.inference_information()).unwrap();
    assert!(information.contains(&format!("ensemble___{CONFIGURATION}___again")), "{information}");
    let count = |folder: &Path| {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".nii.gz")).count()
    };
    assert_eq!(count(&shop.path("predicted_PP")), count(&images));
}

#[test]
fn a_scaling_experiment_runs_within_one_allocation() {
    let Some(slurm) = Slurm::up() else { return };
    let shop = Workshop::new();
    let results = shop.path("scaling");
    let mut submit = slurm.command(&shop, &["sbatch", "--parsable", "--cpus-per-task=1"]);
    submit.arg(format!("{SCRIPTS}/scaling.sbatch"));
    submit.env("SCALE_FLAGS", format!("--steps 2 --warm-up 1 --output {}", results.display()));
    let job = succeed(submit);
    slurm.ends(&shop, job.trim(), "COMPLETED");
    let table = fs::read_to_string(results.join("scaling.csv")).unwrap();
    // A header and one line per number of tasks; the allocation has two tasks.
    assert_eq!(table.lines().count(), 3, "{table}");
}

/// A Slurm controller and a node on each host.
struct Slurm {
    cluster: Cluster,
}

impl Slurm {
    /// Starts Slurm; returns `None` and prints the reason if that is impossible.
    fn up() -> Option<Self> {
        if !is_full() {
            return None;
        }
        let cluster = Cluster::up(HOSTS)?;
        if !is_possible(cluster.tool("slurm.sh", &["check"])) {
            return None;
        }
        succeed(cluster.tool("slurm.sh", &["up"]));
        Some(Self { cluster })
    }

    /// A command on the first host, in the workshop, with the environment that all scripts share.
    fn command(&self, shop: &Workshop, words: &[&str]) -> Command {
        let mut command = self.cluster.tool("slurm.sh", &["do"]);
        command.args(words).current_dir(shop.path("")).env("WORK", shop.work.root()).env("CONFIG", CONFIGURATION);
        command.env("PROGRAM", program().get_program()).env("INTERFACE", "eth0");
        for name in ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM"] {
            command.env(format!("OMPI_{name}"), "1");
        }
        command
    }

    /// Submits a training with the flags of the other tests; returns the job number.
    fn train(&self, shop: &Workshop, run: &RunDir, flags: &[&str], environment: &[(&str, &str)]) -> String {
        let mut submit = self.command(shop, &["sbatch", "--parsable"]);
        submit.args(flags).arg(format!("{SCRIPTS}/train.sbatch"));
        submit.env("RUN_DIR", run.root()).env("FOLD", "0").env("TRAIN_FLAGS", flags_of(&share(shop, run)));
        submit.envs(environment.iter().copied());
        succeed(submit).trim().to_owned()
    }

    /// Trains all folds in a job array, and compares them in another job.
    fn cross_validate(&self, shop: &Workshop, environment: &[(&str, &str)]) {
        let mut submit = self.command(shop, &[&format!("{SCRIPTS}/submit_cross_validation.sh"), "--cpus-per-task=1"]);
        submit.env("TRAIN_FLAGS", format!("--config {} --batch-size 1", shop.settings().display()));
        submit.envs(environment.iter().copied());
        let answer = succeed(submit);
        let jobs = answer.split(|letter: char| !letter.is_ascii_digit()).filter(|word| !word.is_empty());
        jobs.for_each(|job| self.ends(shop, job, "COMPLETED"));
    }

    /// The output of `scontrol show job` for a job.
    fn show(&self, job: &str) -> String {
        succeed(self.cluster.tool("slurm.sh", &["do", "scontrol", "--oneliner", "show", "job", job]))
    }

    /// State of a job, or of the first unfinished job of an array.
    fn state(&self, job: &str) -> String {
        let jobs = self.show(job);
        let states = jobs.lines().filter_map(|line| line.split("JobState=").nth(1)?.split(' ').next());
        states.min_by_key(|state| *state == "COMPLETED").unwrap().to_owned()
    }

    /// Waits for the end of a job, which must have this state.
    #[track_caller]
    fn ends(&self, shop: &Workshop, job: &str, state: &str) {
        let unfinished = ["PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"];
        let began = Instant::now();
        while unfinished.contains(&self.state(job).as_str()) {
            assert!(began.elapsed() < PATIENCE, "job {job} does not end: {}\n{}", self.show(job), log(shop));
            thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(self.state(job), state, "{}\n{}", self.show(job), log(shop));
    }
}

/// The flags of a training that the scripts do not set.
fn flags_of(train: &Command) -> String {
    let words: Vec<_> = train.get_args().map(|word| word.to_str().unwrap()).collect();
    let from = words.iter().position(|word| *word == "--config").unwrap();
    let mut words = words[from..].to_vec();
    let run_dir = words.iter().position(|word| *word == "--run-dir").unwrap();
    words.drain(run_dir..run_dir + 2);
    words.join(" ")
}

/// The output of all jobs in a workshop.
fn log(shop: &Workshop) -> String {
    let mut logs = logs(shop);
    logs.sort();
    logs.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn remove_logs(shop: &Workshop) {
    logs(shop).iter().for_each(|path| fs::remove_file(path).unwrap());
}

fn logs(shop: &Workshop) -> Vec<std::path::PathBuf> {
    let is_log = |path: &Path| path.extension().is_some_and(|ending| ending == "log");
    fs::read_dir(shop.path("")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| is_log(path)).collect()
}

#[track_caller]
fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < PATIENCE, "timed out waiting for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
