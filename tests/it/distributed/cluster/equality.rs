//! Training over several hosts gives the same result as on one.

use std::process::Command;
use std::time::Duration;

use nnunet_dist::checkpoint::SavedModel;
use nnunet_dist::work::RunDir;

use super::hosts::{Cluster, is_full};
use super::launch;
use super::runs::{HOSTS, PATIENCE, STEPS, assert_same_losses, share, train_alone};
use crate::job::Running;
use crate::work::Workshop;

#[test]
fn hosts_train_as_one_process_and_exchange_gradients_over_their_links() {
    let Some(cluster) = Cluster::up(HOSTS) else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("spread");
    trains_as_one(&cluster, &shop, &run, cluster.mpirun(&share(&shop, &run)));
}

#[test]
fn the_launcher_trains_over_hosts_as_one_process() {
    let Some(cluster) = Cluster::up(HOSTS) else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("launched");
    let Some(command) = launch::over_all_hosts(&cluster, HOSTS, &[], &share(&shop, &run)) else { return };
    trains_as_one(&cluster, &shop, &run, command);
}

#[test]
fn slow_and_lossy_links_change_only_the_time() {
    if !is_full() {
        return;
    }
    let Some(cluster) = Cluster::up(HOSTS).filter(Cluster::can_shape) else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("spread");
    let mut command = share(&shop, &run);
    // A slow link is not a lost one.
    command.args(["--comm-timeout", "10"]);
    cluster.shape("100mbit", "1%");
    finishes(cluster.mpirun(&command), 4 * PATIENCE);
    assert_same_losses(&train_alone(&shop), &run);
}

fn trains_as_one(cluster: &Cluster, shop: &Workshop, run: &RunDir, command: Command) {
    let before = cluster.traffic();
    finishes(command, PATIENCE);
    let after = cluster.traffic();
    assert_same_losses(&train_alone(shop), run);
    let needed = bytes_to_exchange(run);
    for (host, (before, after)) in before.iter().zip(&after).enumerate() {
        let (received, sent) = (after.received - before.received, after.sent - before.sent);
        assert!(received.min(sent) >= needed, "host {host}: {received} bytes in, {sent} out, not {needed}");
    }
}

/// Minimum number of bytes that each host sends, and receives: an all-reduce of n bytes over N ranks takes at least 2 n
/// (N - 1) / N bytes per rank (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009).
fn bytes_to_exchange(run: &RunDir) -> u64 {
    let weights = SavedModel::read(&run.checkpoint_latest()).unwrap().weights;
    let bytes: usize = weights.iter().map(|tensor| size_of_val(tensor.values.as_slice())).sum();
    (STEPS * 2 * bytes * (HOSTS - 1) / HOSTS) as u64
}

#[track_caller]
fn finishes(command: Command, patience: Duration) {
    let job = Running::start(command).ends_within(patience);
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
}
