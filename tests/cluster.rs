//! Several hosts, made of network namespaces: that training over them is the same training, that it ends by itself and
//! names the cause when something breaks, and that the scripts for Slurm do what they say.
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

/// Of a process that is a rank with other weights than the rest.
const PART: &str = "NNUNET_TEST_PART";

/// Not a test of its own: what each rank of [`faults`] runs that must differ from the others.
#[test]
fn part_of_a_rank() {
    if std::env::var_os(PART).is_some() {
        small::differ(&*nnunet_dist::distributed::init().unwrap());
    }
}
