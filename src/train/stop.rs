//! Stop requests by signal: from Slurm before the time limit, from a launcher, or by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::flag;

/// Flag that is set when this process has been asked to stop.
#[derive(Clone, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Installs handlers for SIGUSR1 and SIGTERM. The first signal is a request; a second SIGTERM ends the process
    /// immediately, as without a handler.
    pub fn listen() -> Self {
        let request = Self::default();
        // Order matters: at the first signal, the conditional default must still find the flag unset.
        let registered = flag::register_conditional_default(SIGTERM, request.0.clone())
            .and_then(|_| flag::register(SIGTERM, request.0.clone()))
            .and_then(|_| flag::register(SIGUSR1, request.0.clone()));
        if let Err(error) = registered {
            tracing::warn!("cannot install signal handlers, so signals end this process without a checkpoint: {error}");
        }
        request
    }

    /// Returns whether a stop has been requested.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
