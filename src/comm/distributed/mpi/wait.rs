//! Polling with a timeout.

use std::thread;
use std::time::{Duration, Instant};

use super::calls::error;
use crate::distributed::health::{Health, Verdict};
use crate::distributed::{CommError, Fault};

/// Number of polls without sleeping.
const EAGER: u32 = 256;
/// Sleep between later polls. A poll costs about a microsecond, so the core is free for computation.
const NAP: Duration = Duration::from_micros(20);
/// After this much waiting, another millisecond of latency is negligible.
const LONG: Duration = Duration::from_secs(1);
const LONG_NAP: Duration = Duration::from_millis(1);

/// Result of a poll.
pub(super) enum Look<T> {
    Done(T),
    /// Progress was made, but the operation is not complete.
    Moving,
    Still,
}

/// Timeout for waiting on other ranks.
pub(super) struct Patience<'a> {
    limit: Duration,
    health: &'a Health,
}

impl<'a> Patience<'a> {
    pub(super) fn new(limit: Duration, health: &'a Health) -> Self {
        Self { limit, health }
    }

    /// Polls until `look` returns a result, or until the timeout has passed and the late ranks are not just slow.
    ///
    /// # Errors
    /// Returns the error of `look`, or an error that names the missing rank.
    pub(super) fn until<T>(
        &self,
        rank: usize,
        operation: &str,
        began: Instant,
        mut look: impl FnMut() -> Result<Look<T>, CommError>,
    ) -> Result<T, CommError> {
        let mut looks = 0;
        // A bucket may have been in flight long before a caller waits for it; other ranks may have started only now.
        let mut deadline = Instant::now() + self.limit;
        loop {
            match look()? {
                Look::Done(found) => return Ok(found),
                Look::Moving => looks = 0,
                Look::Still => looks += 1,
            }
            if looks < EAGER {
                thread::yield_now();
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                match self.health.verdict(self.limit) {
                    Verdict::Slow(reason) => {
                        tracing::warn!(
                            "rank {rank}: {operation} is still waiting after {:.0} s: {reason}",
                            began.elapsed().as_secs_f64()
                        );
                        deadline = now + self.limit;
                    }
                    Verdict::Lost(reason) => {
                        let operation = format!("{operation}, at {},", self.health.phase());
                        return Err(error(rank, &operation, began, Fault::Lost, reason));
                    }
                }
            }
            thread::sleep(if now + self.limit >= deadline + LONG { LONG_NAP } else { NAP });
        }
    }
}
