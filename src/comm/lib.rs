//! Communication between the ranks of a job, and the NVIDIA libraries that it needs.
//!
//! One process drives one device. [`distributed::init`] joins the job that a launcher (mpirun, srun) started and returns
//! its [`Communicator`]; without a launcher this is [`Single`], the only rank of its job. The same code then runs on one
//! process and on many:
//!
//! - Collectives in host memory are methods of the [`Communicator`]. Gradients are packed into buckets
//!   ([`BucketLayout`]) and reduced during the backward pass, through host memory by a [`Reducer`] or between GPUs by
//!   [`DeviceCollectives`] (NCCL).
//! - Every collective has a timeout. A lost or hung rank is named in the [`CommError`] of all others, since each rank
//!   sends heartbeats over its own connection.
//! - The job ends as a whole: a panic on any thread of any rank ends all ranks.
//!
//! [`DeviceBuffer`] is the memory of a tensor as NCCL, cuDNN and the GPU kernels share it; `cuda` loads the driver. MPI
//! is linked with the feature `mpi`; NVIDIA's libraries are loaded at run time with the feature `nccl`.
//!
//! [`BucketLayout`]: distributed::BucketLayout
//! [`CommError`]: distributed::CommError
//! [`Communicator`]: distributed::Communicator
//! [`DeviceCollectives`]: distributed::DeviceCollectives
//! [`Reducer`]: distributed::Reducer
//! [`Single`]: distributed::Single
//!
//! ```
//! use nnunet_comm::distributed::{Communicator, ReduceOp, Single, own_partition, partition_by_cost};
//!
//! // The mean of a loss over all ranks. `init()` returns the communicator of a job.
//! let comm = Single;
//! let mut loss = [0.5];
//! comm.all_reduce(&mut loss, ReduceOp::Mean, "loss")?;
//! assert_eq!(loss, [0.5]);
//!
//! // Five cases over two ranks, balanced by their size: 11 and 10 of 21 units.
//! let costs = [1, 9, 4, 5, 2];
//! assert_eq!(partition_by_cost(&costs, 2), [vec![1, 4], vec![0, 2, 3]]);
//! assert_eq!(own_partition(&comm, &costs), [0, 1, 2, 3, 4]);
//! # Ok::<(), nnunet_comm::distributed::CommError>(())
//! ```

#[cfg(feature = "nccl")]
pub mod cuda;
pub mod distributed;

pub use distributed::{BufferDtype, DeviceBuffer};
