//! Training under mpirun when one rank fails: the job ends with an error that names the rank and the cause.

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;

use nnunet_dist::config::RunConfig;
use nnunet_dist::distributed;
use nnunet_dist::train::{self, RunOptions};
use nnunet_dist::work::WorkDir;

use crate::job;
use crate::job::{Job, is_open_mpi, observe};
use crate::work::{Workshop, wait_for_epochs};

/// The environment variable with the work folder and the run folder of a rank.
const FOLDERS: &str = "NNUNET_TEST_FOLDERS";

/// Longer than any time limit of a test.
const FOR_EVER: [&str; 2] = ["--epochs", "100000"];

#[test]
fn a_file_that_one_rank_cannot_read_is_named() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let cut_short: fn(&Path) = |path| File::options().write(true).open(path).unwrap().set_len(1000).unwrap();
    let removed: fn(&Path) = |path| fs::remove_file(path).unwrap();
    for (folder, file, damage) in [("cut", "phantom_002_seg.npy", cut_short), ("gone", "phantom_003.npy", removed)] {
        let copy = shop.copy(folder);
        let store = copy.preprocessed(shop.store().file_name().unwrap().to_str().unwrap());
        damage(&store.join(file));
        let ranks = [shop.train(&run), shop.train_on(&copy, &run)];
        let Some(job) = observe_ranks(&ranks) else { return };
        job.failed_with(3);
        job.says(&format!("error: rank 1: {}: ", store.join(file).display()));
    }
}

#[test]
fn a_rank_with_other_settings_is_named() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut other = shop.train(&run);
    other.args(["--lr", "0.5"]);
    let Some(job) = observe_ranks(&[shop.train(&run), other]) else { return };
    job.failed_with(3);
    job.says(": consistency check of configuration, plans or cases failed");
    job.says("rank 1 differs from the other 1");
    assert!(!job.output.contains("rank 1: rank 1: "), "{}", job.output);
}

#[test]
fn a_rank_that_is_killed_ends_the_training() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let rank = || {
        let mut command = shop.train(&run);
        command.args(FOR_EVER);
        command
    };
    // The rank writes its process id, to be killed by.
    let id = shop.path("id");
    let mut victim = Command::new("sh");
    victim.args(["-c", r#"echo $$ > "$0"; exec "$@""#]).arg(&id).arg(rank().get_program()).args(rank().get_args());

    let ranks = [rank(), victim];
    let job = thread::scope(|scope| {
        let job = scope.spawn(|| observe_ranks(&ranks));
        if job::launcher().is_some() {
            wait_for_epochs(&run, 1);
            let id: libc::pid_t = fs::read_to_string(&id).unwrap().trim().parse().unwrap();
            // SAFETY: no preconditions; the rank trains until it is killed, so its process id is valid.
            unsafe { libc::kill(id, libc::SIGKILL) };
        }
        job.join().unwrap()
    });
    let Some(job) = job else { return };
    assert!(!job.status.success(), "{}", job.output);
    // Messages of the launcher.
    job.says(if is_open_mpi() { "process rank 1 with PID" } else { "BAD TERMINATION" });
    assert!(!job.output.contains("run directory: "), "{}", job.output);
}

#[test]
fn a_panic_in_another_thread_of_one_rank_ends_the_training() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let folders = env::join_paths([shop.work.root(), shop.run_dir("run").root(), &shop.settings()]).unwrap();
    let rank = job::me(module_path!(), FOLDERS, folders.to_str().unwrap());
    let job = observe(job::in_parallel(launcher, 2, &[], &rank));
    job.failed_with(101);
    job.says("rank 1: panic: injected panic at tests/it/distributed/failing_ranks.rs:");
}

/// Not a test: a rank that panics after the first epoch if it is rank 1.
#[test]
fn part_of_a_rank() {
    let Some(folders) = env::var_os(FOLDERS) else { return };
    let [work, run, settings] = env::split_paths(&folders).collect::<Vec<_>>().try_into().unwrap();
    let comm = distributed::init().unwrap();
    let mut config = RunConfig::load(&settings).unwrap();
    config.run_dir = run;
    config.training.epochs = 100_000;
    if comm.rank() == 1 {
        let run = config.run_dir();
        thread::spawn(move || {
            wait_for_epochs(&run, 1);
            panic!("injected panic")
        });
    }
    train::run(&config, &WorkDir::new(work), &*comm, RunOptions::default()).unwrap();
    println!("rank {} of {} is done", comm.rank(), comm.world_size());
}

/// Runs a job with a different command for each rank; `None` without a launcher.
fn observe_ranks([first, second]: &[Command; 2]) -> Option<Job> {
    let mut job = job::in_parallel(job::launcher()?, 1, &[], first);
    job.args([":", "-np", "1"]).arg(second.get_program()).args(second.get_args());
    Some(observe(job))
}
