//! Checks this machine and this build, with fixes for missing parts.
//!
//! [`examine`] checks the parts without changing anything; [`render`] formats the table that `nnunet-dist doctor`
//! prints. Vendor libraries are opened as in training, at run time and by name.

mod cpu;
mod cuda;
mod finding;
mod mpi;
mod shared_library;
mod space;

pub use finding::{Finding, PartState, render};

/// Checks every part that any command can use.
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![cpu::processor(), cpu::onednn()];
    findings.extend(cuda::examine());
    findings.extend(mpi::examine());
    findings.extend(space::examine());
    findings
}
