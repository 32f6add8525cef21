//! Polling with a timeout.

use std::thread;
use std::time::{Duration, Instant};

use super::calls::error;
use crate::distributed::health::{Diagnosis, Health};
use crate::distributed::{CommError, Fault};

/// Number of polls without sleeping.
const SPIN_COUNT: u32 = 256;
/// Sleep between later polls. A poll costs about a microsecond, so the core is free for computation.
const POLL_INTERVAL: Duration = Duration::from_micros(20);
/// After this much waiting, another millisecond of latency is negligible.
const LONG_WAIT: Duration = Duration::from_secs(1);
const LONG_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Result of a poll.
pub(super) enum PollState<T> {
    Done(T),
    /// Progress was made, but the operation is not complete.
    Progressed,
    Unchanged,
}

/// Timeout for waiting on other ranks.
pub(super) struct Deadline<'a> {
    limit: Duration,
    health: &'a Health,
}

impl<'a> Deadline<'a> {
    pub(super) fn new(limit: Duration, health: &'a Health) -> Self {
        Self { limit, health }
    }

    /// Polls until `poll` returns a result, or until the timeout has passed and the late ranks are not just slow.
    ///
    /// # Errors
    /// Returns the error of `poll`, or an error that names the missing rank.
    pub(super) fn poll_until_done<T>(
        &self,
        rank: usize,
        operation: &str,
        began: Instant,
        mut poll: impl FnMut() -> Result<PollState<T>, CommError>,
    ) -> Result<T, CommError> {
        let mut idle_polls = 0;
        // A bucket may have been in flight long before a caller waits for it; other ranks may have started only now.
        let mut deadline = Instant::now() + self.limit;
        loop {
            match poll()? {
                PollState::Done(found) => return Ok(found),
                PollState::Progressed => idle_polls = 0,
                PollState::Unchanged => idle_polls += 1,
            }
            if idle_polls < SPIN_COUNT {
                thread::yield_now();
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                match self.health.diagnose(self.limit) {
                    Diagnosis::Slow(reason) => {
                        tracing::warn!(
                            "rank {rank}: {operation} is still waiting after {:.0} s: {reason}",
                            began.elapsed().as_secs_f64()
                        );
                        deadline = now + self.limit;
                    }
                    Diagnosis::Lost(reason) => {
                        let operation = format!("{operation}, at {},", self.health.phase());
                        return Err(error(rank, &operation, began, Fault::Lost, reason));
                    }
                }
            }
            thread::sleep(if now + self.limit >= deadline + LONG_WAIT { LONG_POLL_INTERVAL } else { POLL_INTERVAL });
        }
    }
}
