//! How far a training is: `status.json` and `log.jsonl` of its run directory.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// How often the files are looked at.
const EVERY: Duration = Duration::from_millis(500);

/// The point that a training reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Optimiser steps since the beginning of the run.
    Step(u64),
    /// Epochs that are over, where steps are not known.
    Epochs(u64),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => write!(f, "step {step}"),
            Self::Epochs(epochs) => write!(f, "epoch {epochs}"),
        }
    }
}

/// The run directory, if `line` is the one that names it in the configuration that rank 0 prints.
pub fn run_dir(line: &str) -> Option<PathBuf> {
    if !line.starts_with("run_dir") {
        return None;
    }
    let table: toml::Table = line.parse().ok()?;
    table.get("run_dir")?.as_str().map(PathBuf::from)
}

/// Looks at the files of a run until it is dropped, on a thread of its own: a file system that hangs takes nobody along.
#[derive(Debug)]
pub struct Watcher {
    _stop: mpsc::Sender<()>,
}

impl Watcher {
    /// Calls `news` whenever something has changed. What lies there at the beginning is older than this attempt, unless it
    /// was written after `since`. When the watcher is dropped, the files are looked at once more.
    pub fn start(run_dir: &Path, since: SystemTime, news: impl Fn(Progress) + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let mut files = Files::new(run_dir, since);
        // Without a thread the attempt has no progress to show; it is still ended by its other signs.
        let _ = thread::Builder::new().name("status".into()).spawn(move || {
            loop {
                let is_last = stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout);
                if let Some(progress) = files.news() {
                    news(progress);
                }
                if is_last {
                    return;
                }
            }
        });
        Self { _stop: stop }
    }
}

/// The content of `status.json` that tells whether a training lives.
#[derive(Debug, Clone, PartialEq)]
struct Pulse {
    state: String,
    step: u64,
    updated_unix: f64,
}

impl Pulse {
    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        Some(Self {
            state: value.get("state")?.as_str()?.to_owned(),
            step: value.get("step")?.as_u64()?,
            updated_unix: value.get("updated_unix")?.as_f64()?,
        })
    }
}

/// The files as they were when last looked at.
struct Files {
    status: PathBuf,
    log: PathBuf,
    pulse: Option<Pulse>,
    epochs: Option<u64>,
    since: f64,
}

impl Files {
    fn new(run_dir: &Path, since: SystemTime) -> Self {
        let (status, log) = (run_dir.join("status.json"), run_dir.join("log.jsonl"));
        let since = since.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let mut files = Self { status, log, pulse: None, epochs: None, since };
        files.pulse = files.read_pulse().filter(|pulse| pulse.updated_unix < files.since);
        files
    }

    /// Where the training is, if anything has changed. The log speaks where there is no status.
    fn news(&mut self) -> Option<Progress> {
        if let Some(pulse) = self.read_pulse() {
            let is_new = self.pulse.as_ref() != Some(&pulse);
            let step = pulse.step;
            self.pulse = Some(pulse);
            return is_new.then_some(Progress::Step(step));
        }
        let epochs = fs::read_to_string(&self.log).ok().and_then(|text| epochs_in(&text));
        let is_new = epochs != self.epochs;
        self.epochs = epochs;
        epochs.filter(|_| is_new).map(Progress::Epochs)
    }

    fn read_pulse(&self) -> Option<Pulse> {
        fs::read_to_string(&self.status).ok().as_deref().and_then(Pulse::parse)
    }
}

/// The number of epochs that a `log.jsonl` tells of.
fn epochs_in(text: &str) -> Option<u64> {
    let last: Value = serde_json::from_str(text.lines().last()?).ok()?;
    Some(last.get("epoch")?.as_u64()? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, step: u64, updated: u64) -> String {
        format!(r#"{{"state":"{state}","epoch":0,"step":{step},"world_size":2,"updated_unix":{updated}}}"#)
    }

    #[test]
    fn the_run_directory_is_read_as_toml() {
        assert_eq!(run_dir(r#"run_dir = "/data/my \"runs\"/fold_0""#), Some(r#"/data/my "runs"/fold_0"#.into()));
        assert_eq!(run_dir("run_dir = 'a'"), Some("a".into()));
        for line in ["run_dir", "run_dir = 3", "run_dir_x = 'a'", "the run_dir = 'a'"] {
            assert_eq!(run_dir(line), None, "{line}");
        }
    }

    #[test]
    fn only_changes_are_news() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.json");
        fs::write(&path, status("training", 7, 100)).unwrap();
        let mut files = Files::new(folder.path(), UNIX_EPOCH + Duration::from_secs(200));
        assert_eq!(files.news(), None);
        fs::write(&path, status("training", 7, 201)).unwrap();
        assert_eq!(files.news(), Some(Progress::Step(7)));
        assert_eq!(files.news(), None);
        fs::write(&path, status("validating", 7, 201)).unwrap();
        assert_eq!(files.news(), Some(Progress::Step(7)));
        fs::write(&path, "{").unwrap();
        assert_eq!(files.news(), None);
    }

    #[test]
    fn a_status_written_before_anyone_looked_counts() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("status.json"), status("training", 3, 201)).unwrap();
        let mut files = Files::new(folder.path(), UNIX_EPOCH + Duration::from_secs(200));
        assert_eq!(files.news(), Some(Progress::Step(3)));
    }

    #[test]
    fn without_a_status_the_log_tells_the_epochs() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log.jsonl"), "{\"epoch\":0}\n{\"epoch\":1}\n").unwrap();
        let mut files = Files::new(folder.path(), SystemTime::now());
        assert_eq!(files.news(), Some(Progress::Epochs(2)));
        assert_eq!(files.news(), None);
    }
}
