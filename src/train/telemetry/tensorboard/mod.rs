//! Event files for TensorBoard: the values of `log.jsonl`, the loss of every step, and images.
//!
//! An [`EventFile`](file::EventFile) is a sequence of framed messages ([`event`]). TensorBoard reads all files of a
//! folder in order of their names. Every event has a step of the run; values of an epoch use its last step. A resumed
//! run starts a new file with a message that it starts at its step. The reader then discards later steps from earlier
//! files: they were made after the checkpoint and are repeated.

mod event;
mod file;
mod observer;

pub use observer::TensorBoard;
