//! Training runs that are asked to stop, and resume without a difference.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::telemetry::{RunState, Status};
use nnunet_dist::work::RunDir;
use serde_json::{Map, Value};

use crate::job;
use crate::work::{self, Workshop, tensors_of};

/// Exit code of a run that was stopped without losing work.
const STOPPED: i32 = 79;

/// Steps per epoch, many enough for a signal to come in the middle of an epoch.
const ITERATIONS: &str = "40";

#[test]
fn a_run_stopped_within_an_epoch_resumes_with_the_same_losses() {
    let shop = Workshop::new();
    let [whole, broken] = ["whole", "broken"].map(|name| shop.run_dir(name));
    let train = |run: &RunDir, flags: &[&str]| {
        let mut command = shop.train(run);
        command.args(["--iters-per-epoch", ITERATIONS]).args(flags);
        command
    };
    assert!(train(&whole, &[]).stdout(Stdio::null()).status().unwrap().success());

    for (signal, flag) in [(libc::SIGUSR1, "--resume=auto"), (libc::SIGTERM, "--resume"), (libc::SIGINT, "--resume")] {
        let mut run = train(&broken, &[flag]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let at = wait_for_a_step_within_an_epoch(&broken, &mut run);
        kill(&run, signal);
        assert_eq!(run.wait().unwrap().code(), Some(STOPPED), "at {at:?}");
        let status = status(&broken).unwrap();
        assert_eq!(status.state, RunState::Stopped);
        assert!(status.step >= at, "{status:?}");
        // The next run must not read the status of this one as its own.
        fs::remove_file(broken.status()).unwrap();
    }
    assert!(train(&broken, &["--resume"]).stdout(Stdio::null()).status().unwrap().success());
    assert_eq!(status(&broken).unwrap().state, RunState::Finished);

    assert_eq!(losses(&whole), losses(&broken));
    assert!(tensors_of(&whole.checkpoint_latest()) == tensors_of(&broken.checkpoint_latest()));
}

/// Ctrl-C during a step of minutes: `status` shows the request at once, and a second one does not wait for the step.
#[test]
fn a_request_is_shown_during_a_long_step_and_a_second_one_ends_the_run() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut command = shop.train(&run);
    command.args(["--gradient-accumulation-steps", "100000"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    // The text log is opened before the first step.
    while !fs::read_to_string(run.text_log()).is_ok_and(|log| log.contains("training and")) {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(2));
    }
    kill(&child, libc::SIGINT);
    while status(&run).is_none_or(|status| status.state != RunState::Stopping) {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(2));
    }
    let shown = work::program().arg("status").arg(run.root()).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("stopping"), "{shown:?}");
    kill(&child, libc::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGINT));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("stopping after this step, with a checkpoint; a second signal"), "{log}");
}

#[test]
fn all_processes_under_mpirun_stop_at_the_same_step() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut rank = shop.train(&run);
    rank.args(["--batch-size", "1", "--iters-per-epoch", "100000"]);
    let mut mpirun = job::in_parallel(launcher, 2, &[], &rank);
    let mut mpirun = mpirun.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_a_step_within_an_epoch(&run, &mut mpirun);
    // Both launchers forward it to their ranks.
    kill(&mpirun, libc::SIGUSR1);
    let code = mpirun.wait().unwrap().code();
    // MPICH's launcher may exit with 0 after a signal, for any exit code of the ranks.
    assert!(code == Some(STOPPED) || (!job::is_open_mpi() && code == Some(0)), "{code:?}");
    let stopped = status(&run).unwrap();
    assert_eq!(stopped.state, RunState::Stopped);

    let mut resumed = shop.train(&run);
    let last = (stopped.iteration + 2).to_string();
    resumed.args(["--batch-size", "1", "--epochs", "1", "--iters-per-epoch", &last, "--resume"]);
    let job = job::observe(job::in_parallel(launcher, 2, &[], &resumed));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    job.says(&format!("resuming at epoch 1, step {}", stopped.iteration + 2));
}

/// Waits until a run has made some steps of an epoch; returns the number of the last one.
fn wait_for_a_step_within_an_epoch(run: &RunDir, process: &mut Child) -> u64 {
    let began = Instant::now();
    loop {
        if let Some(status) = status(run) {
            return status.step;
        }
        assert!(process.try_wait().unwrap().is_none(), "it is over before it made a step");
        assert!(began.elapsed() < Duration::from_secs(60), "{}: no step is made", run.root().display());
        thread::sleep(Duration::from_millis(2));
    }
}

fn status(run: &RunDir) -> Option<Status> {
    serde_json::from_slice(&fs::read(run.status()).ok()?).ok()
}

fn kill(process: &Child, signal: i32) {
    // SAFETY: the process has not been waited for, so its id is still valid.
    assert_eq!(unsafe { libc::kill(process.id() as libc::pid_t, signal) }, 0);
}

/// The lines of the log without timings.
fn losses(run: &RunDir) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.log()).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Map<String, Value> = serde_json::from_str(line).unwrap();
        line.retain(|key, _| !key.ends_with("_s"));
        line
    });
    lines.collect()
}
