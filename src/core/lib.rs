//! Foundations that every crate of nnunet-dist uses: atomic files, keyed random streams, small mathematics, traces.
//!
//! - [`fsio`] writes files so that a reader never sees half of one.
//! - [`pickle`] writes Python pickles, for checkpoints and case properties that nnU-Net reads.
//! - [`rng`] gives the counter-based random stream of a draw, keyed by seed, purpose, epoch and sample.
//! - [`trace`] records what the threads of a process did, and writes it in Chrome's trace format.

pub mod fsio;
pub mod math;
pub mod pickle;
pub mod rng;
pub mod trace;

/// The program's name, as files record it.
pub const PROGRAM: &str = "nnunet-dist";

/// The program's version, as files record it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
