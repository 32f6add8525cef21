//! Deadlines after which a running job is killed.

use std::time::{Duration, Instant};

use crate::attempt::Cause;

/// Time limits for a job without visible activity.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimits {
    /// Time from the first reported error of a rank to the end of the job.
    pub grace: Duration,
    /// Time between two signs of progress; `None` for no limit.
    pub hang: Option<Duration>,
}

/// Deadlines of one attempt. It reads no clock; each call passes the current time.
#[derive(Debug)]
pub struct Watchdog {
    limits: TimeLimits,
    last_sign: Instant,
    has_status: bool,
    error_reported: Option<(Instant, Option<i32>)>,
}

impl Watchdog {
    /// Creates the deadlines of a job that starts at `now`.
    pub fn new(limits: TimeLimits, now: Instant) -> Self {
        Self { limits, last_sign: now, has_status: false, error_reported: None }
    }

    /// Records an output line. Lines count as signs of life until the first status; an error of a rank starts the grace
    /// period.
    pub fn line(&mut self, text: &str, now: Instant) {
        if !self.has_status {
            self.last_sign = now;
        }
        if text.starts_with("error: rank ") {
            self.error_reported.get_or_insert((now, None));
        }
    }

    /// Records a change of the run's files.
    pub fn progress(&mut self, now: Instant) {
        self.has_status = true;
        self.last_sign = now;
    }

    /// Records that a signal to end the job was sent.
    pub fn ends_by(&mut self, signal: i32, now: Instant) {
        self.error_reported.get_or_insert((now, Some(signal)));
    }

    /// Returns the next deadline.
    pub fn deadline(&self) -> Option<Instant> {
        let error_reported = self.error_reported.map(|(since, _)| since + self.limits.grace);
        let hang = self.limits.hang.map(|limit| self.last_sign + limit);
        error_reported.into_iter().chain(hang).min()
    }

    /// Returns the cause to kill the job at `now`, if there is one.
    pub fn expired(&self, now: Instant) -> Option<Cause> {
        if let Some((_, signal)) = self.error_reported.filter(|(since, _)| *since + self.limits.grace <= now) {
            return Some(signal.map_or(Cause::NotEnded(self.limits.grace), Cause::Signaled));
        }
        self.limits.hang.filter(|limit| self.last_sign + *limit <= now).map(Cause::Hang)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TimeLimits = TimeLimits { grace: Duration::from_secs(15), hang: Some(Duration::from_secs(100)) };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_error_of_a_rank_starts_the_grace_period_once() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        watchdog.line("the error: rank 1", start);
        assert_eq!(watchdog.deadline(), Some(after(start, 100)));
        watchdog.line("error: rank 1: lost", after(start, 5));
        watchdog.line("error: rank 0: lost", after(start, 10));
        assert_eq!(watchdog.deadline(), Some(after(start, 20)));
        assert_eq!(watchdog.expired(after(start, 19)), None);
        assert_eq!(watchdog.expired(after(start, 20)), Some(Cause::NotEnded(LIMITS.grace)));
    }

    #[test]
    fn output_counts_as_progress_until_there_is_a_status() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        watchdog.line("reading cases", after(start, 50));
        assert_eq!(watchdog.deadline(), Some(after(start, 150)));
        watchdog.progress(after(start, 60));
        watchdog.line("waiting", after(start, 90));
        assert_eq!(watchdog.deadline(), Some(after(start, 160)));
        assert_eq!(watchdog.expired(after(start, 160)), Some(Cause::Hang(Duration::from_secs(100))));
    }

    #[test]
    fn a_signaled_job_has_the_grace_period_too() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(TimeLimits { hang: None, ..LIMITS }, start);
        assert_eq!(watchdog.deadline(), None);
        watchdog.ends_by(2, start);
        assert_eq!(watchdog.expired(after(start, 15)), Some(Cause::Signaled(2)));
    }
}
