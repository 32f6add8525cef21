//! All-reduces between GPUs by NCCL, beside a communicator that does everything else in host memory.
//!
//! [`NcclLink::join`] connects this rank's GPU with those of the others, and [`NcclComm`] puts the link beside the host's
//! communicator. NCCL has no deadline of its own and blocks for ever where a rank is lost, so nothing here blocks inside
//! it: the communicator is non-blocking, its state is polled, and a thread ([`watchdog`]) looks after the reductions
//! under way and aborts the communicator when NCCL reports an error or the deadline passes.
//!
//! Both NCCL ([`library`]) and the CUDA driver ([`crate::cuda`]) are opened at run time, from files that may be older or newer
//! than the headers of this build; of cudarc only the C types are used. Its functions look a library up under names that
//! NVIDIA's packages do not use (`libnccl.so.2`) and panic where it or a symbol is missing.
//!
//! Source: NCCL user guide, "Creating a communicator", "Error handling and communicator abort", "Fault tolerance".

mod comm;
mod library;
mod link;
mod watchdog;

pub use comm::NcclComm;
pub use link::{NcclLink, Timeouts, own_gpu};

/// Version and place of the NCCL library that is found, such as `2.30.7 (libnccl.so.2)`.
///
/// # Errors
/// Why there is none, in one line.
pub fn nccl_version() -> Result<String, String> {
    library::Nccl::open().map(|nccl| format!("{} ({})", nccl.version(), nccl.path.display()))
}
