//! Segmentation over HTTP, for programs that send images: long running, and bounded in all that it holds.
//!
//! An image is received into a folder of its own on disk (`upload`), looked at before any memory is asked for
//! (`check`), and waits in a queue of bounded length. One thread reads and preprocesses it, another owns the device and
//! predicts (`worker`), in a cascade by both stages; both go on with the next while the answer is sent from a file
//! (`routes`). So memory holds two images at most, however many clients there are and however slow they are.
//!
//! Whoever asks for too much, or for nonsense, gets a status code and one line (`refusal`).

mod check;
mod error;
mod image_file;
mod job;
mod metrics;
mod options;
mod refusal;
mod routes;
mod server;
mod state;
mod upload;
mod worker;

pub use error::ServeError;
pub use options::{ServeLimits, ServeOptions};
pub use server::serve;
