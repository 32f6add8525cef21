//! Communication between processes: rendezvous, collectives, failure handling.
//!
//! [`init`] detects whether a launcher started this process as one of several and returns the [`Communicator`] of the
//! job: [`Single`] for a single process, which never initializes MPI, otherwise the MPI communicator. It also divides
//! the CPU cores among the ranks of a host ([`divide_threads`]). The job succeeds or fails as a whole: a panic on any
//! thread of any rank and [`Communicator::abort`] end all ranks within seconds, with a non-zero exit code and a line
//! that names the rank. Collectives are matched only by their order, so [`check_consistency`] first compares everything
//! they depend on.
//!
//! Every collective has a timeout, and heartbeats identify a missing rank (`health`). Gradients are exchanged in
//! buckets ([`BucketLayout`]): through host memory by a [`Reducer`], between GPUs by [`DeviceCollectives`].
//!
//! No MPI or NCCL type appears outside this folder.

mod bucket;
mod communicator;
mod consistency;
#[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "a single process ends by itself"))]
mod failure;
#[cfg(feature = "mpi")]
mod health;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod partition;
mod placement;
mod rendezvous;
mod threads;

pub use bucket::{Bucket, BucketLayout, BucketPosition, CommDtype};
pub use communicator::{
    BufferDtype, CommError, Communicator, DeviceBuffer, DeviceCollectives, Fault, HealthMonitor, ReduceOp, Reducer,
    Single, Work,
};
pub use consistency::{check_consistency, describe_mismatch, mismatched_ranks};
pub use failure::install_out_of_memory_hook;
#[cfg(feature = "nccl")]
pub use nccl::{NcclComm, NcclLink, Timeouts, nccl_version, own_gpu};
pub use nnunet_core::host::host_name;
pub use partition::{own_partition, partition_by_cost};
pub use placement::{LocalRank, check_gpus_not_shared, choose_gpu, local_rank_on_host};
pub use rendezvous::{init, mpi_version};
pub use threads::divide_threads;
