//! HTTP server for segmentation, long-running and with bounded memory.
//!
//! An image is received into its own folder on disk (`upload`), checked before memory is allocated (`upload`), and
//! queued in a bounded queue. One thread reads and preprocesses it, another owns the device and predicts (`worker`), in
//! both stages for a cascade; both continue with the next image while the answer is streamed from a file (`routes`).
//! Memory therefore holds at most two images, regardless of the number and speed of the clients.
//!
//! Invalid or too large requests get a status code and a one-line message (`api_error`).

mod api_error;
mod job;
mod metrics;
mod options;
mod routes;
mod server;
mod state;
mod upload;
mod worker;

pub use options::ServeError;
pub use options::{ServeLimits, ServeOptions};
pub use server::serve;
