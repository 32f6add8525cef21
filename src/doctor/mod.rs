//! What this machine and this build offer, and how to get what is missing.
//!
//! [`examine`] looks at one part after the other and changes nothing; [`render`] makes the table that
//! `nnunet-dist doctor` prints. The vendors' libraries are opened as training opens them, at run time and by name.

mod cpu;
mod cuda;
mod finding;
mod mpi;
mod shared_library;
mod space;

pub use finding::{Finding, State, render};

/// Looks for every part that some command can use.
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![cpu::processor(), cpu::onednn()];
    findings.extend(cuda::examine());
    findings.extend(mpi::examine());
    findings.extend(space::examine());
    findings
}
