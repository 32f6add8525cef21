//! Checks this machine and this build, with fixes for missing parts.
//!
//! [`examine`] checks the parts without changing anything; [`render`] formats the table that `nnunet-dist doctor`
//! prints. Vendor libraries are opened as in training, at run time and by name.

mod cuda;
mod finding;
mod host;
mod mpi;

pub use finding::{Finding, PartState, render};

/// Checks every part that any command can use.
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![host::processor(), host::onednn()];
    findings.extend(cuda::examine());
    findings.extend(mpi::examine());
    findings.extend(host::space());
    findings
}
