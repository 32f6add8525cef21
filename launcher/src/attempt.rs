//! Attempts of a job: classification of their end, decision on a restart, and the table of all attempts.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::status::Progress;

/// Temporary failure: a rank, a host or the network was lost.
pub const RETRY: u8 = 75;
/// Stopped by a signal after saving a checkpoint.
pub const STOPPED: u8 = 79;

/// Exit codes of nnunet-dist that no restart can change: usage, invalid data, missing device or library, panic.
const FINAL: [u8; 4] = [2, 3, 4, 101];

/// End of mpirun or srun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Regular exit with this code.
    Exit(i32),
    /// Signal that was not sent by the launcher.
    Signal(i32),
    /// Killed by the launcher.
    Killed(Cause),
}

/// Cause for the launcher to kill a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A rank reported an error and the job did not end within this time.
    NotEnded(Duration),
    /// No progress for this time.
    Hang(Duration),
    /// The user sent this signal.
    Signaled(i32),
}

impl End {
    /// Returns whether all ranks are known to have ended, because the exit code is one of nnunet-dist.
    pub fn all_ranks_ended(&self) -> bool {
        matches!(self, Self::Exit(code) if [0, STOPPED].iter().chain(&FINAL).any(|known| i32::from(*known) == *code))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Killed(Cause::NotEnded(_)) => f.write_str("killed"),
            Self::Killed(Cause::Hang(_)) => f.write_str("hang"),
            Self::Killed(Cause::Signaled(signal)) => write!(f, "killed ({signal})"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnded(grace) => {
                write!(f, "a rank reported an error and the job did not end in {:.0} s", grace.as_secs_f64())
            }
            Self::Hang(time) => write!(f, "no progress for {:.0} s", time.as_secs_f64()),
            Self::Signaled(signal) => write!(f, "stopped by signal {signal}"),
        }
    }
}

/// Errors that the ranks reported before the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportedErrors {
    /// First line of a rank that begins with `error:`.
    pub error: Option<String>,
    /// First final exit code of a rank in srun's messages; srun's own exit code may be that of another rank.
    pub reported: Option<u8>,
}

impl ReportedErrors {
    /// Records a line, without the rank prefix.
    pub fn record(&mut self, text: &str) {
        if self.error.is_none() && text.starts_with("error:") {
            self.error = Some(text.trim_end().to_owned());
        }
        self.reported = self.reported.or_else(|| reported(text).filter(|code| FINAL.contains(code)));
    }
}

/// Action after the end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitClass {
    /// No action: success.
    Success,
    /// No action: stopped by the user.
    Stopped(u8),
    /// Restart, if allowed.
    Retry,
    /// Report to the user; a restart would fail again.
    Final(u8),
}

/// Classifies the end of an attempt; `stop` is the signal that requested the stop, if any.
pub fn classify_exit(end: &End, errors: &ReportedErrors, stop: Option<i32>) -> ExitClass {
    let last_resort = match (stop, errors.reported) {
        // A rank without a handler, or mpirun after ^C: nothing was saved, and a restart is not wanted.
        (Some(signal), _) => ExitClass::Stopped(low_byte(128 + signal)),
        (None, Some(code)) => ExitClass::Final(code),
        (None, None) => ExitClass::Retry,
    };
    match end {
        End::Exit(0) => ExitClass::Success,
        End::Exit(code) if *code == i32::from(STOPPED) => ExitClass::Stopped(STOPPED),
        End::Exit(code) if FINAL.contains(&low_byte(*code)) => ExitClass::Final(low_byte(*code)),
        End::Exit(code) if *code == i32::from(RETRY) && stop.is_some() => ExitClass::Stopped(RETRY),
        // Exit code 1 is an internal error of a rank, with a message, or mpirun's code for a lost host.
        End::Exit(1) if errors.error.is_some() && stop.is_none() => ExitClass::Final(1),
        End::Exit(_) | End::Signal(_) => last_resort,
        End::Killed(Cause::Signaled(signal)) => ExitClass::Stopped(low_byte(128 + signal)),
        End::Killed(_) if stop.is_some() => ExitClass::Stopped(RETRY),
        End::Killed(_) => ExitClass::Retry,
    }
}

/// Returns a one-line reason for the end of an attempt: the error of a rank, or else that of the system.
pub fn reason(end: &End, errors: &ReportedErrors) -> String {
    match (end, &errors.error) {
        (End::Exit(code), _) if *code == i32::from(STOPPED) => "stopped after saving a checkpoint".to_owned(),
        (_, Some(error)) => error.clone(),
        (End::Killed(cause), None) => cause.to_string(),
        (End::Exit(0), None) => "done".to_owned(),
        (End::Exit(code @ 129..=192), None) => format!("a rank ended by signal {}", code - 128),
        (End::Exit(205), None) => "mpirun lost the connection to a host".to_owned(),
        (End::Exit(code), None) => format!("exit code {code} without an error message"),
        (End::Signal(signal), None) => format!("ended by signal {signal}"),
    }
}

/// Parses the exit code in `srun: error: node1: task 3: Exited with exit code 3`.
fn reported(line: &str) -> Option<u8> {
    let (_, rest) = line.strip_prefix("srun: error: ")?.split_once("Exited with exit code ")?;
    rest.trim().parse().ok()
}

/// Returns the part of an exit code that the system passes on.
fn low_byte(code: i32) -> u8 {
    code.to_le_bytes()[0]
}

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

    fn reported(lines: &[&str]) -> ReportedErrors {
        let mut errors = ReportedErrors::default();
        lines.iter().for_each(|line| errors.record(line));
        errors
    }

    #[test]
    fn classifies_exit_codes_of_nnunet_dist() {
        let silent = ReportedErrors::default();
        assert_eq!(classify_exit(&End::Exit(0), &silent, None), ExitClass::Success);
        assert_eq!(classify_exit(&End::Exit(79), &silent, Some(15)), ExitClass::Stopped(79));
        assert_eq!(classify_exit(&End::Exit(75), &reported(&["error: rank 1: x"]), None), ExitClass::Retry);
        for code in [2, 3, 4, 101] {
            let end = End::Exit(i32::from(code));
            assert_eq!(classify_exit(&end, &silent, None), ExitClass::Final(code));
        }
        assert_eq!(classify_exit(&End::Exit(1), &reported(&["error: bug"]), None), ExitClass::Final(1));
    }

    #[test]
    fn exit_codes_of_lost_daemons_are_retried() {
        for code in [1, 9, 134, 137, 143, 205] {
            assert_eq!(classify_exit(&End::Exit(code), &ReportedErrors::default(), None), ExitClass::Retry, "{code}");
        }
        for cause in [Cause::NotEnded(Duration::ZERO), Cause::Hang(Duration::ZERO)] {
            assert_eq!(classify_exit(&End::Killed(cause), &reported(&["error: rank 0: x"]), None), ExitClass::Retry);
        }
        assert_eq!(classify_exit(&End::Signal(9), &ReportedErrors::default(), None), ExitClass::Retry);
    }

    #[test]
    fn uses_the_final_exit_code_in_messages_of_srun() {
        let errors =
            reported(&["srun: error: n1: task 1: Exited with exit code 3", "srun: error: n2: task 0: Terminated"]);
        assert_eq!(classify_exit(&End::Exit(143), &errors, None), ExitClass::Final(3));
        let errors = reported(&["srun: error: n1: tasks 1-3: Exited with exit code 75"]);
        assert_eq!(classify_exit(&End::Exit(143), &errors, None), ExitClass::Retry);
    }

    #[test]
    fn a_requested_stop_is_not_restarted() {
        assert_eq!(classify_exit(&End::Exit(138), &ReportedErrors::default(), Some(10)), ExitClass::Stopped(138));
        assert_eq!(classify_exit(&End::Exit(75), &ReportedErrors::default(), Some(10)), ExitClass::Stopped(75));
        assert_eq!(
            classify_exit(&End::Killed(Cause::Signaled(2)), &ReportedErrors::default(), Some(2)),
            ExitClass::Stopped(130)
        );
        assert_eq!(classify_exit(&End::Exit(3), &ReportedErrors::default(), Some(15)), ExitClass::Final(3));
    }

    #[test]
    fn the_reason_is_the_first_error_of_a_rank() {
        let errors = reported(&["note: error: x", "error: rank 1: lost \n", "error: rank 0: too"]);
        assert_eq!(reason(&End::Exit(75), &errors), "error: rank 1: lost");
        assert_eq!(reason(&End::Exit(79), &errors), "stopped after saving a checkpoint");
        assert_eq!(reason(&End::Exit(137), &ReportedErrors::default()), "a rank ended by signal 9");
        assert_eq!(
            reason(&End::Killed(Cause::Hang(Duration::from_secs(9))), &ReportedErrors::default()),
            "no progress for 9 s"
        );
    }

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
    fn restarts_only_temporary_failures() {
        let policy = Policy { max_restarts: 3, backoff: Duration::from_secs(1) };
        let after = |class| policy.next(&[attempt(class, None)]);
        assert_eq!(after(ExitClass::Success), NextAction::End(0));
        assert_eq!(after(ExitClass::Stopped(79)), NextAction::End(79));
        assert_eq!(after(ExitClass::Final(3)), NextAction::End(3));
        assert_eq!(after(ExitClass::Retry), NextAction::Restart(Duration::from_secs(1)));
    }

    #[test]
    fn counts_restarts() {
        assert_eq!(next(0, &[Some(1)]), NextAction::End(75));
        assert_eq!(next(2, &[Some(1), Some(2)]), NextAction::Restart(Duration::from_secs(2)));
        assert_eq!(next(2, &[Some(1), Some(2), Some(3)]), NextAction::GiveUp("restart limit of 2 reached".into()));
    }

    #[test]
    fn gives_up_after_two_failures_at_one_step() {
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
