//! Restart policy and the table of attempts.

use std::fmt::Write as _;
use std::time::Duration;

use crate::exit_class::{End, ExitClass, RETRY};
use crate::status::Progress;

/// Maximum wait before a restart.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// One finished attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// End of the attempt.
    pub end: End,
    /// Classification of the end.
    pub class: ExitClass,
    /// Last known training progress; `None` before the first step.
    pub progress: Option<Progress>,
    /// Reason for the end, in one line.
    pub reason: String,
    /// Time from start to end.
    pub duration: Duration,
}

/// Action after an attempt.
#[derive(Debug, PartialEq, Eq)]
pub enum NextAction {
    /// End the launcher with this exit code.
    End(u8),
    /// Restart after this time.
    Restart(Duration),
    /// End the launcher with [`RETRY`], for this reason.
    GiveUp(String),
}

/// Limit and backoff of restarts.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Maximum number of restarts.
    pub max_restarts: u32,
    /// Wait before the first restart.
    pub backoff: Duration,
}

impl Policy {
    /// Decides what to do after the last of `attempts`.
    pub fn next(&self, attempts: &[Attempt]) -> NextAction {
        let Some((last, earlier)) = attempts.split_last() else { return NextAction::Restart(Duration::ZERO) };
        match last.class {
            ExitClass::Success => NextAction::End(0),
            ExitClass::Stopped(code) | ExitClass::Final(code) => NextAction::End(code),
            ExitClass::Retry if self.max_restarts == 0 => NextAction::End(RETRY),
            ExitClass::Retry if earlier.iter().any(|attempt| attempt.progress == last.progress) => {
                NextAction::GiveUp(match last.progress {
                    Some(progress) => format!("failed twice at {progress}"),
                    None => "failed twice before the first step".to_owned(),
                })
            }
            ExitClass::Retry if earlier.len() >= self.max_restarts as usize => {
                NextAction::GiveUp(format!("restart limit of {} reached", self.max_restarts))
            }
            ExitClass::Retry => NextAction::Restart(self.wait(earlier.len())),
        }
    }

    /// Returns the wait after `earlier` restarts: doubled each time, up to a minute.
    pub fn wait(&self, earlier: usize) -> Duration {
        let factor = 1 << earlier.min(16);
        self.backoff.saturating_mul(factor).min(MAX_BACKOFF)
    }
}

/// Formats all attempts as a table with one line each.
pub fn table(attempts: &[Attempt]) -> String {
    let mut text = format!("{:>7}  {:<10}  {:<14}  {:>8}  reason\n", "attempt", "end", "reached", "seconds");
    for (index, attempt) in attempts.iter().enumerate() {
        let reached = attempt.progress.map_or_else(|| "-".to_owned(), |progress| progress.to_string());
        let (end, seconds) = (attempt.end.to_string(), attempt.duration.as_secs_f64());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>7}  {end:<10}  {reached:<14}  {seconds:>8.1}  {}", index + 1, attempt.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(class: ExitClass, step: Option<u64>) -> Attempt {
        Attempt {
            end: End::Exit(75),
            class,
            progress: step.map(Progress::Step),
            reason: "error: rank 1: lost".into(),
            duration: Duration::from_secs(12),
        }
    }

    fn next(max_restarts: u32, steps: &[Option<u64>]) -> NextAction {
        let attempts: Vec<_> = steps.iter().map(|step| attempt(ExitClass::Retry, *step)).collect();
        Policy { max_restarts, backoff: Duration::from_secs(1) }.next(&attempts)
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let policy = Policy { max_restarts: 3, backoff: Duration::from_secs(1) };
        let after = |class| policy.next(&[attempt(class, None)]);
        assert_eq!(after(ExitClass::Success), NextAction::End(0));
        assert_eq!(after(ExitClass::Stopped(79)), NextAction::End(79));
        assert_eq!(after(ExitClass::Final(3)), NextAction::End(3));
        assert_eq!(after(ExitClass::Retry), NextAction::Restart(Duration::from_secs(1)));
    }

    #[test]
    fn restarts_are_counted() {
        assert_eq!(next(0, &[Some(1)]), NextAction::End(75));
        assert_eq!(next(2, &[Some(1), Some(2)]), NextAction::Restart(Duration::from_secs(2)));
        assert_eq!(next(2, &[Some(1), Some(2), Some(3)]), NextAction::GiveUp("restart limit of 2 reached".into()));
    }

    #[test]
    fn the_same_step_twice_is_enough() {
        assert_eq!(next(9, &[Some(4), Some(4)]), NextAction::GiveUp("failed twice at step 4".into()));
        assert_eq!(next(9, &[Some(4), None, Some(4)]), NextAction::GiveUp("failed twice at step 4".into()));
        assert_eq!(next(9, &[None, None]), NextAction::GiveUp("failed twice before the first step".into()));
    }

    #[test]
    fn the_wait_doubles_up_to_a_minute() {
        let policy = Policy { max_restarts: 9, backoff: Duration::from_secs(1) };
        assert_eq!([0, 1, 2, 5, 6, 400].map(|earlier| policy.wait(earlier).as_secs()), [1, 2, 4, 32, 60, 60]);
    }

    #[test]
    fn the_table_has_a_line_per_attempt() {
        let text = table(&[attempt(ExitClass::Retry, Some(120)), attempt(ExitClass::Retry, None)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "1 exit 75 step 120 12.0 error: rank 1: lost"
        );
        assert_eq!(lines[2].find("error"), lines[1].find("error"));
    }
}
