//! Signals to the launcher, and what becomes of them.

use std::io;

use libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal to the launcher means for the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send this one to the starter, which hands it on: the ranks save a checkpoint and stop.
    Save(i32),
    /// Send this one to the starter, which ends the job.
    End(i32),
    /// Kill everything now.
    Kill,
}

/// The signals that the launcher takes.
#[derive(Debug)]
pub struct Signals {
    user: Signal,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// The first that came.
    first: Option<i32>,
    /// Whether one came that can be meant more seriously by repeating it.
    is_urgent: bool,
}

impl Signals {
    /// Takes the signals from now on.
    ///
    /// # Errors
    ///
    /// The system's, when it lets no handler be set.
    pub fn new() -> io::Result<Self> {
        let take = |number| signal(SignalKind::from_raw(number));
        let (user, terminate, interrupt, hang_up) = (take(SIGUSR1)?, take(SIGTERM)?, take(SIGINT)?, take(SIGHUP)?);
        Ok(Self { user, terminate, interrupt, hang_up, first: None, is_urgent: false })
    }

    /// The next signal.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            Some(()) = self.user.recv() => SIGUSR1,
            Some(()) = self.terminate.recv() => SIGTERM,
            Some(()) = self.interrupt.recv() => SIGINT,
            Some(()) = self.hang_up.recv() => SIGHUP,
            else => std::future::pending().await,
        }
    }

    /// What to do about a signal.
    pub fn act(&mut self, signal: i32, is_training: bool) -> Action {
        let action = act(signal, self.is_urgent, is_training);
        self.first = self.first.or(Some(signal));
        self.is_urgent |= signal != SIGUSR1;
        action
    }

    /// The signal that asked for an end first, if one did.
    pub fn asked(&self) -> Option<i32> {
        self.first
    }
}

/// TERM becomes USR1 for a training: mpirun kills its ranks one second after TERM, too soon for a checkpoint.
fn act(signal: i32, is_repeated: bool, is_training: bool) -> Action {
    match signal {
        SIGUSR1 => Action::Save(SIGUSR1),
        _ if is_repeated => Action::Kill,
        SIGTERM | SIGHUP if is_training => Action::Save(SIGUSR1),
        SIGINT => Action::End(SIGINT),
        _ => Action::End(SIGTERM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_kills() {
        assert_eq!(act(SIGUSR1, false, true), Action::Save(SIGUSR1));
        assert_eq!(act(SIGUSR1, true, true), Action::Save(SIGUSR1));
        assert_eq!(act(SIGINT, false, true), Action::End(SIGINT));
        assert_eq!(act(SIGINT, true, true), Action::Kill);
        assert_eq!(act(SIGTERM, true, true), Action::Kill);
    }

    #[test]
    fn only_a_training_can_save() {
        assert_eq!(act(SIGTERM, false, true), Action::Save(SIGUSR1));
        assert_eq!(act(SIGTERM, false, false), Action::End(SIGTERM));
        assert_eq!(act(SIGHUP, false, false), Action::End(SIGTERM));
    }
}
