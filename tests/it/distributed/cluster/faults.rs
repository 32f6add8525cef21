//! Training after the loss of a rank, a host or a link: it ends in time and names the fault.
//!
//! Under plain mpirun the exit code comes from the first process to notice, a rank or mpirun itself; `nnunet-launch`
//! makes it 75. A frozen host that runs mpirun freezes mpirun too, so that only the launcher ends the job.

use std::process::Command;
use std::time::Duration;

use super::hosts::{Cluster, is_full};
use super::launch;
use super::runs::{HOSTS, PATIENCE, assert_same_losses, endless_share, share, train_alone, wait_for_steps};
use crate::job::{Job, Running, me};
use crate::work::Workshop;

/// `--comm-timeout` in seconds.
const DEADLINE: u64 = 10;

/// Time limit from the fault to the end of the job.
const LIMIT: Duration = Duration::from_secs(DEADLINE + 15);

/// The host with the fault, and the rank that runs there.
const VICTIM: usize = 2;

/// Exit code of mpirun when a rank ended by SIGKILL.
const KILLED: i32 = 128 + libc::SIGKILL;

/// Exit code of mpirun when it lost one of its daemons.
const DAEMON_LOST: i32 = 205;

/// Exit code: try again.
const RETRY: i32 = 75;

#[test]
fn a_rank_that_is_killed_ends_the_training() {
    let fault = |cluster: &Cluster| cluster.signal(VICTIM, "KILL");
    let words = |host: &str| ["process rank 1 with PID".into(), format!("on node {host} exited on signal 9")];
    ends(under_mpirun, fault, KILLED, words);
    if is_full() {
        ends(under_the_launcher, fault, RETRY, words);
    }
}

#[test]
fn a_rank_that_is_frozen_is_named() {
    if is_full() {
        let fault = |cluster: &Cluster| cluster.signal(VICTIM, "STOP");
        ends(under_mpirun, fault, RETRY, silence);
        ends(under_the_launcher, fault, RETRY, silence);
    }
}

#[test]
fn a_host_that_loses_power_is_named() {
    if is_full() {
        let fault = |cluster: &Cluster| cluster.power_off(VICTIM);
        ends(under_mpirun, fault, DAEMON_LOST, lost_daemon);
        ends(under_the_launcher, fault, RETRY, lost_daemon);
    }
}

#[test]
fn a_host_whose_link_is_cut_is_named() {
    if is_full() {
        let fault = |cluster: &Cluster| cluster.cut_link(VICTIM);
        ends(under_mpirun, fault, DAEMON_LOST, lost_daemon);
        ends(under_the_launcher, fault, RETRY, lost_daemon);
    }
}

#[test]
fn a_host_that_is_frozen_is_named_and_blocks_no_other() {
    if is_full() {
        ends(under_the_launcher, |cluster| cluster.freeze(VICTIM), RETRY, silence);
    }
}

#[test]
fn a_short_link_outage_does_not_end_the_training() {
    if !is_full() {
        return;
    }
    let Some(cluster) = Cluster::up(HOSTS) else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut job = Running::start(cluster.mpirun(&share(&shop, &run)));
    wait_for_steps(&mut job, &run, 2);
    cluster.cut_link(VICTIM);
    std::thread::sleep(Duration::from_secs(2));
    cluster.mend_link(VICTIM);
    succeeded(job);
    assert_same_losses(&train_alone(&shop), &run);
}

#[test]
fn other_buckets_on_one_host_are_refused() {
    if !is_full() {
        return;
    }
    let Some(cluster) = Cluster::up(HOSTS) else { return };
    let shop = Workshop::new();
    let train = share(&shop, &shop.run_dir("run"));
    let mut rank = Command::new("sh");
    rank.args(["-c", r#"[ "$(hostname)" != "$0" ] || set -- "$@" --bucket-mb 0.1; exec "$@""#, &cluster.host(VICTIM)]);
    rank.arg(train.get_program()).args(train.get_args());
    let job = Running::start(cluster.mpirun(&rank)).ends_within(PATIENCE);
    assert_eq!(job.status.code(), Some(3), "{}", job.output);
    job.says("rank 1 differs from the other 2");
}

#[test]
fn other_weights_on_one_host_are_named() {
    if !is_full() {
        return;
    }
    let Some(cluster) = Cluster::up(HOSTS) else { return };
    let job = Running::start(cluster.mpirun(&me(super::MODULE, super::PART, "differ"))).ends_within(PATIENCE);
    assert_eq!(job.status.code(), Some(RETRY), "{}", job.output);
    job.says("weight check after step 4 failed");
    job.says("rank 1 differs in its weights from the other 2");
}

#[test]
fn a_restarted_training_ends_with_the_same_losses() {
    if !is_full() {
        return;
    }
    let Some(cluster) = Cluster::up(HOSTS) else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let Some(command) = launch::over_all_hosts(&cluster, HOSTS, &["--max-restarts", "1"], &share(&shop, &run)) else {
        return;
    };
    let mut job = Running::start(command);
    wait_for_steps(&mut job, &run, 5);
    cluster.signal(VICTIM, "KILL");
    let output = succeeded(job).output;
    assert!(output.contains("resuming at epoch "), "{output}");
    assert_same_losses(&train_alone(&shop), &run);
}

/// Messages of the remaining ranks.
fn silence(host: &str) -> [String; 2] {
    ["error: rank 0: ".into(), format!("no heartbeat from rank 1 on {host} for ")]
}

/// Messages of mpirun.
fn lost_daemon(host: &str) -> [String; 2] {
    ["ORTE has lost communication with a remote daemon".into(), format!("on node {host}")]
}

type Starter = fn(&Cluster, &Command) -> Option<Command>;

fn under_mpirun(cluster: &Cluster, train: &Command) -> Option<Command> {
    Some(cluster.mpirun(train))
}

fn under_the_launcher(cluster: &Cluster, train: &Command) -> Option<Command> {
    launch::over_all_hosts(cluster, HOSTS, &[], train)
}

/// Injects a fault into a training, which must end in time with this exit code and these messages.
fn ends(starter: Starter, fault: impl FnOnce(&Cluster), code: i32, words: impl FnOnce(&str) -> [String; 2]) {
    let Some(cluster) = Cluster::up(HOSTS) else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut train = endless_share(&shop, &run);
    train.args(["--comm-timeout", &DEADLINE.to_string()]);
    let Some(command) = starter(&cluster, &train) else { return };
    let mut job = Running::start(command);
    wait_for_steps(&mut job, &run, 3);
    fault(&cluster);
    let job = job.ends_within(LIMIT);
    assert_eq!(job.status.code(), Some(code), "{}", job.output);
    words(&cluster.host(VICTIM)).iter().for_each(|words| job.says(words));
}

fn succeeded(job: Running) -> Job {
    let job = job.ends_within(PATIENCE);
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    job
}
