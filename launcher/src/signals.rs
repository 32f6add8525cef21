//! Signal handling of the launcher.

use std::io;

use libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Action on the job for a signal to the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send this signal to mpirun or srun, which forwards it: the ranks save a checkpoint and stop.
    Save(i32),
    /// Send this signal to mpirun or srun, which ends the job.
    End(i32),
    /// Kill all processes immediately.
    Kill,
}

/// Handlers of the signals that the launcher catches.
#[derive(Debug)]
pub struct Signals {
    user: Signal,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// First received signal.
    first: Option<i32>,
    /// Whether a signal has been received that kills the job when repeated.
    kill_on_repeat: bool,
}

impl Signals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    ///
    /// Returns the system's error if a handler cannot be installed.
    pub fn new() -> io::Result<Self> {
        let take = |number| signal(SignalKind::from_raw(number));
        let (user, terminate, interrupt, hang_up) = (take(SIGUSR1)?, take(SIGTERM)?, take(SIGINT)?, take(SIGHUP)?);
        Ok(Self { user, terminate, interrupt, hang_up, first: None, kill_on_repeat: false })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            Some(()) = self.user.recv() => SIGUSR1,
            Some(()) = self.terminate.recv() => SIGTERM,
            Some(()) = self.interrupt.recv() => SIGINT,
            Some(()) = self.hang_up.recv() => SIGHUP,
            else => std::future::pending().await,
        }
    }

    /// Decides on the action for a signal.
    pub fn on_signal(&mut self, signal: i32, is_training: bool) -> Action {
        let action = action_for(signal, self.kill_on_repeat, is_training);
        self.first = self.first.or(Some(signal));
        self.kill_on_repeat |= signal != SIGUSR1;
        action
    }

    /// Returns the first received signal, if any.
    pub fn first_signal(&self) -> Option<i32> {
        self.first
    }
}

/// TERM becomes USR1 for training: mpirun kills its ranks one second after TERM, too soon for a checkpoint.
fn action_for(signal: i32, is_repeated: bool, is_training: bool) -> Action {
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
    fn a_repeated_signal_kills() {
        assert_eq!(action_for(SIGUSR1, false, true), Action::Save(SIGUSR1));
        assert_eq!(action_for(SIGUSR1, true, true), Action::Save(SIGUSR1));
        assert_eq!(action_for(SIGINT, false, true), Action::End(SIGINT));
        assert_eq!(action_for(SIGINT, true, true), Action::Kill);
        assert_eq!(action_for(SIGTERM, true, true), Action::Kill);
    }

    #[test]
    fn only_training_saves_on_a_signal() {
        assert_eq!(action_for(SIGTERM, false, true), Action::Save(SIGUSR1));
        assert_eq!(action_for(SIGTERM, false, false), Action::End(SIGTERM));
        assert_eq!(action_for(SIGHUP, false, false), Action::End(SIGTERM));
    }
}
