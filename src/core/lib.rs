//! Foundations of all crates of nnunet-dist: atomic files, keyed random streams, vectorizable math, traces.
//!
//! - [`fsio`] writes files atomically: a reader sees the old file or the complete new one, also after a power loss.
//! - [`lock`] gives a folder to one process at a time, [`protect`] keeps a command from replacing its inputs, [`host`]
//!   names this host and its processes.
//! - [`rng`] creates counter-based random streams. Every random value depends only on seed, purpose, epoch and index, so
//!   a resumed run and a run with another number of processes draw the same values.
//! - [`user_file`] reads JSON and text that people write, from any editor.
//! - [`memory`] knows the memory of the machine.
//! - [`math`] has f32 functions without branches, which the compiler can vectorize.
//! - [`mapped`] maps files into memory and reports files that shrink; [`run_log`] keeps the log lines of a run.
//! - [`trace`] records the activity of the threads of a process in Chrome's trace format.
//!
//! ```
//! use nnunet_core::{fsio, rng};
//! use rand::Rng;
//!
//! // Write a file and read it back. A failed write leaves the old file, and no partial one.
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("status.json");
//! fsio::write_json(&path, &serde_json::json!({"step": 3}))?;
//! assert!(std::fs::read_to_string(&path)?.contains("\"step\": 3"));
//!
//! // The augmentation of sample 17 in epoch 2, on whichever rank and thread it is computed.
//! let draw = || rng::stream(1234, rng::Purpose::Augment, 2, 17).random::<u64>();
//! assert_eq!(draw(), draw());
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod fsio;
pub mod host;
pub mod lock;
pub mod mapped;
pub mod math;
pub mod memory;
pub mod pickle;
pub mod protect;
pub mod rng;
pub mod run_log;
pub mod trace;
pub mod user_file;

/// Name of the program, as recorded in files.
pub const PROGRAM: &str = "nnunet-dist";

/// Version of the program, as recorded in files.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
