//! Being asked to stop: by Slurm before the time limit, by a launcher, by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::flag;

/// Whether this process has been asked to stop.
#[derive(Clone, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Listens to SIGUSR1 and SIGTERM from now on. The first is a request; a second SIGTERM ends the process at once, as
    /// it would without us.
    pub fn listen() -> Self {
        let request = Self::default();
        // In this order: the first signal finds the flag not set yet.
        let registered = flag::register_conditional_default(SIGTERM, request.0.clone())
            .and_then(|_| flag::register(SIGTERM, request.0.clone()))
            .and_then(|_| flag::register(SIGUSR1, request.0.clone()));
        if let Err(error) = registered {
            tracing::warn!("signals end this process without a checkpoint: {error}");
        }
        request
    }

    /// Whether one has come.
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
