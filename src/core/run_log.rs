//! Text log of a run: a copy of the log lines in the run directory.
//!
//! The program's logger writes every line to [`RunLogWriter`]. Lines are kept in memory until [`open`] names the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of bytes kept before the file is open.
const MAX_WAITING: usize = 1 << 16;

enum State {
    Waiting(Vec<u8>),
    Open(File),
}

static STATE: Mutex<State> = Mutex::new(State::Waiting(Vec::new()));

/// Appends the log lines of this process to the file at `path`, beginning with those kept so far.
///
/// # Errors
/// Returns an error if the file cannot be opened. Later write errors, such as a full disk, are ignored.
pub fn open(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut state = state();
    if let State::Waiting(lines) = &*state {
        let _ = file.write_all(lines);
    }
    *state = State::Open(file);
    Ok(())
}

/// Writes log lines; never fails.
pub struct RunLogWriter;

impl Write for RunLogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *state() {
            State::Waiting(lines) if lines.len() + bytes.len() <= MAX_WAITING => lines.extend_from_slice(bytes),
            State::Waiting(_) => {}
            // A log that cannot be written must not end a run.
            State::Open(file) => drop(file.write_all(bytes)),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_before_and_after_opening_are_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.log");
        RunLogWriter.write_all(b"first\n").unwrap();
        open(&path).unwrap();
        RunLogWriter.write_all(b"second\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first\nsecond\n");
    }
}
