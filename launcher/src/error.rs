//! Why a job cannot even be started.

use std::io;

/// An error of the launcher itself. What becomes of a job that was started is a [`crate::verdict::Verdict`].
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command line asks for something that cannot be; the text names the flag to change.
    #[error("{0}")]
    Usage(String),
    /// A program or a device is missing; the text says how to get it.
    #[error("{0}")]
    Missing(String),
    /// The operating system refused something that always works.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl LaunchError {
    /// The exit code of a wrong command line.
    pub const USAGE: u8 = 2;

    /// The exit code of the launcher.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => Self::USAGE,
            Self::Missing(_) => 4,
            Self::System(_) => 1,
        }
    }
}
