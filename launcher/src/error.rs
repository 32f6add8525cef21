//! Errors before the start of a job.

use std::io;

/// Error of the launcher. The outcome of a started job is a [`crate::attempt::ExitClass`].
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command line requests something impossible; the text names the flag to change.
    #[error("{0}")]
    Usage(String),
    /// A program or device is missing; the text tells how to install it.
    #[error("{0}")]
    Missing(String),
    /// An operating system call failed unexpectedly.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl LaunchError {
    /// Exit code for an invalid command line.
    pub const USAGE: u8 = 2;

    /// Returns the exit code of the launcher.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => Self::USAGE,
            Self::Missing(_) => 4,
            Self::System(_) => 1,
        }
    }
}
