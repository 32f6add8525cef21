//! Several hosts made of network namespaces: training over them gives the same result as on one host, faults end it in
//! time and are named, and the Slurm scripts work.
//!
//! A short form runs with all other tests; `make test-cluster` runs everything.
#![cfg(feature = "mpi")]

#[path = "cluster/chaos.rs"]
mod chaos;
#[path = "common/disk.rs"]
mod disk;
#[path = "cluster/equality.rs"]
mod equality;
#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/hosts.rs"]
mod hosts;
#[path = "common/job.rs"]
mod job;
#[path = "cluster/launch.rs"]
mod launch;
#[path = "cluster/runs.rs"]
mod runs;
#[path = "cluster/slurm.rs"]
mod slurm;
#[path = "common/small.rs"]
mod small;
#[path = "common/work.rs"]
mod work;

/// The environment variable of a rank that must have different weights from the others.
const PART: &str = "NNUNET_TEST_PART";

/// Not a test: run by each rank of [`faults`] that must differ from the others.
#[test]
fn part_of_a_rank() {
    if std::env::var_os(PART).is_some() {
        small::differ(&*nnunet_dist::distributed::init().unwrap());
    }
}
