//! When a job that still runs has to be killed.

use std::time::{Duration, Instant};

use crate::verdict::Cause;

/// How long a job may do nothing visible.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first report of a rank that something is lost to the end of the job.
    pub grace: Duration,
    /// Between two signs of progress; `None` for ever.
    pub hang: Option<Duration>,
}

/// The deadlines of one attempt. It knows no clock: each call says what time it is.
#[derive(Debug)]
pub struct Patience {
    limits: Limits,
    last_sign: Instant,
    has_status: bool,
    trouble: Option<(Instant, Option<i32>)>,
}

impl Patience {
    /// A job that starts at `now`.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, last_sign: now, has_status: false, trouble: None }
    }

    /// A rank or the starter said something. It is a sign of life until there are better ones; a rank that is in trouble
    /// says so and has the grace to end.
    pub fn line(&mut self, text: &str, now: Instant) {
        if !self.has_status {
            self.last_sign = now;
        }
        if text.starts_with("error: rank ") {
            self.trouble.get_or_insert((now, None));
        }
    }

    /// The files of the run have changed.
    pub fn progress(&mut self, now: Instant) {
        self.has_status = true;
        self.last_sign = now;
    }

    /// The job was sent a signal that ends it.
    pub fn ends_by(&mut self, signal: i32, now: Instant) {
        self.trouble.get_or_insert((now, Some(signal)));
    }

    /// When the next deadline is.
    pub fn deadline(&self) -> Option<Instant> {
        let trouble = self.trouble.map(|(since, _)| since + self.limits.grace);
        let hang = self.limits.hang.map(|limit| self.last_sign + limit);
        trouble.into_iter().chain(hang).min()
    }

    /// Why the job has to be killed at `now`, if it has to.
    pub fn exhausted(&self, now: Instant) -> Option<Cause> {
        if let Some((_, signal)) = self.trouble.filter(|(since, _)| *since + self.limits.grace <= now) {
            return Some(signal.map_or(Cause::Unended(self.limits.grace), Cause::Asked));
        }
        self.limits.hang.filter(|limit| self.last_sign + *limit <= now).map(Cause::Hang)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { grace: Duration::from_secs(15), hang: Some(Duration::from_secs(100)) };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_error_of_a_rank_starts_the_grace_once() {
        let start = Instant::now();
        let mut patience = Patience::new(LIMITS, start);
        patience.line("the error: rank 1", start);
        assert_eq!(patience.deadline(), Some(after(start, 100)));
        patience.line("error: rank 1: lost", after(start, 5));
        patience.line("error: rank 0: lost", after(start, 10));
        assert_eq!(patience.deadline(), Some(after(start, 20)));
        assert_eq!(patience.exhausted(after(start, 19)), None);
        assert_eq!(patience.exhausted(after(start, 20)), Some(Cause::Unended(LIMITS.grace)));
    }

    #[test]
    fn lines_are_signs_of_life_until_there_is_a_status() {
        let start = Instant::now();
        let mut patience = Patience::new(LIMITS, start);
        patience.line("reading cases", after(start, 50));
        assert_eq!(patience.deadline(), Some(after(start, 150)));
        patience.progress(after(start, 60));
        patience.line("waiting", after(start, 90));
        assert_eq!(patience.deadline(), Some(after(start, 160)));
        assert_eq!(patience.exhausted(after(start, 160)), Some(Cause::Hang(Duration::from_secs(100))));
    }

    #[test]
    fn a_job_that_was_told_to_end_has_the_grace_too() {
        let start = Instant::now();
        let mut patience = Patience::new(Limits { hang: None, ..LIMITS }, start);
        assert_eq!(patience.deadline(), None);
        patience.ends_by(2, start);
        assert_eq!(patience.exhausted(after(start, 15)), Some(Cause::Asked(2)));
    }
}
