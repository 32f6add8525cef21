//! Several hosts, made of network namespaces: that training over them is the same training, that it ends by itself and
//! names the cause when something breaks, and that the scripts for Slurm do what they say.
//!
//! A short form runs with all other tests; `make test-cluster` runs everything.
#![cfg(feature = "mpi")]

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
#[path = "common/work.rs"]
mod work;
