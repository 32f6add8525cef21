//! Real MPI jobs on one host and over several.

#[path = "../../common/mod.rs"]
mod common;
#[path = "../../common/disk.rs"]
mod disk;
#[path = "../../common/job.rs"]
mod job;
#[path = "../../common/network.rs"]
mod network;
#[path = "../../common/skip.rs"]
mod skip;
#[path = "../../common/small.rs"]
mod small;
#[path = "../../common/work.rs"]
mod work;

mod cluster;
mod ddp_reference;
mod exchange_ranks;
mod failing_ranks;
mod mpi;
mod scaling_ranks;
mod spread_ranks;
