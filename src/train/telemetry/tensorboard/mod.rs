//! Event files for TensorBoard: what is in `log.jsonl`, every step's loss, and pictures.
//!
//! An [`EventFile`](file::EventFile) is a sequence of framed messages ([`event`]); TensorBoard reads all files of a folder in
//! the order of their names. Everything is logged at a step of the run, what belongs to an epoch at its last one. A run that
//! goes on begins another file with a message that it starts at that step, upon which a reader forgets what it has of later
//! ones: steps that were made after the checkpoint and are made again.

mod event;
mod file;
mod observer;

pub use observer::TensorBoard;
