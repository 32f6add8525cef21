//! Waiting, with an end.

use std::thread;
use std::time::{Duration, Instant};

use super::calls::error;
use crate::distributed::health::{Health, Verdict};
use crate::distributed::{CommError, Fault};

/// How often one looks without sleeping.
const EAGER: u32 = 256;
/// How long one sleeps from then on: a look costs a microsecond, so that the core is free for those who compute.
const NAP: Duration = Duration::from_micros(20);
/// After waiting so long, another millisecond does not count.
const LONG: Duration = Duration::from_secs(1);
const LONG_NAP: Duration = Duration::from_millis(1);

/// What one has seen.
pub(super) enum Look<T> {
    Done(T),
    /// It comes nearer.
    Moving,
    Still,
}

/// How long a rank waits for the others.
pub(super) struct Patience<'a> {
    limit: Duration,
    health: &'a Health,
}

impl<'a> Patience<'a> {
    pub(super) fn new(limit: Duration, health: &'a Health) -> Self {
        Self { limit, health }
    }

    /// Looks until there is something, or until the deadline has passed and those who are late are not just slow.
    ///
    /// # Errors
    /// Of `look`, or who is missing.
    pub(super) fn until<T>(
        &self,
        rank: usize,
        operation: &str,
        began: Instant,
        mut look: impl FnMut() -> Result<Look<T>, CommError>,
    ) -> Result<T, CommError> {
        let mut looks = 0;
        // A bucket may have been under way for long before anybody waits for it; the others may have begun only now.
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
                            "rank {rank}: {operation} has taken {:.0} s so far: {reason}",
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
