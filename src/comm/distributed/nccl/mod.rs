//! All-reduces between GPUs with NCCL, next to a communicator that handles everything else in host memory.
//!
//! [`NcclLink::join`] connects this rank's GPU with the GPUs of the other ranks, and [`NcclComm`] combines the link
//! with the host communicator. NCCL has no timeout and blocks forever when a rank is lost, so nothing here blocks
//! inside NCCL: the communicator is non-blocking, its state is polled, and a thread ([`watchdog`]) monitors the
//! reductions in flight and aborts the communicator on an NCCL error or a timeout.
//!
//! Both NCCL ([`library`]) and the CUDA driver ([`crate::cuda`]) are loaded at run time, from files that may be older
//! or newer than the headers of this build. Only the C types of cudarc are used: its functions look a library up under
//! names that NVIDIA's packages do not use (`libnccl.so.2`), and panic if the library or a symbol is missing.
//!
//! Source: NCCL user guide, "Creating a communicator", "Error handling and communicator abort", "Fault tolerance".

mod comm;
mod library;
mod link;
mod watchdog;

pub use comm::NcclComm;
pub use link::{NcclLink, Timeouts, own_gpu};

/// Returns version and path of the NCCL library, such as `2.30.7 (libnccl.so.2)`.
///
/// # Errors
/// Returns an error in one line if the library cannot be loaded.
pub fn nccl_version() -> Result<String, String> {
    library::Nccl::open().map(|nccl| format!("{} ({})", nccl.version(), nccl.path.display()))
}
