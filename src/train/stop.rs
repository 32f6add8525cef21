//! Stop requests by signal: from Slurm before the time limit, from a launcher, or by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// Time between two checks of the flag for the announcement of a request.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Flag that is set when this process has been asked to stop.
#[derive(Default)]
pub struct StopRequest {
    flag: Arc<AtomicBool>,
    /// Dropped with this request, which ends the thread that announces it. The signal handlers keep the flag.
    alive: Arc<()>,
}

impl StopRequest {
    /// Installs handlers for SIGUSR1, SIGTERM and SIGINT (Ctrl-C). The first signal is a request; a second SIGTERM or
    /// SIGINT ends the process immediately, as without a handler. A thread calls `announce` soon after the request.
    pub fn listen(announce: impl FnOnce() + Send + 'static) -> Self {
        let request = Self::default();
        // Order matters: at the first signal, the conditional default must still find the flag unset.
        let register = |signal| {
            flag::register_conditional_default(signal, request.flag.clone())?;
            flag::register(signal, request.flag.clone())
        };
        let registered = register(SIGTERM)
            .and_then(|_| register(SIGINT))
            .and_then(|_| flag::register(SIGUSR1, request.flag.clone()));
        if let Err(error) = registered {
            tracing::warn!("cannot install signal handlers, so signals end this process without a checkpoint: {error}");
        }
        request.watch(announce);
        request
    }

    /// Starts a thread that waits for the request, or for the end of the training.
    fn watch(&self, announce: impl FnOnce() + Send + 'static) {
        let (flag, alive) = (self.flag.clone(), Arc::downgrade(&self.alive));
        let watch = move || {
            while alive.strong_count() > 0 {
                if flag.load(Ordering::Relaxed) {
                    return announce();
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("stop-request".into()).spawn(watch) {
            tracing::debug!("stop requests are not announced: {error}");
        }
    }

    /// Returns whether a stop has been requested.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}
