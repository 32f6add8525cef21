//! Training progress from `status.json` and `log.jsonl` of the run directory.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// Polling interval of the files.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Progress of a training run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Optimizer steps since the start of the run.
    Step(u64),
    /// Finished epochs, if steps are not known.
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

/// Returns the run directory if `line` is its entry in the configuration printed by rank 0.
pub fn run_dir(line: &str) -> Option<PathBuf> {
    if !line.starts_with("run_dir") {
        return None;
    }
    let table: toml::Table = line.parse().ok()?;
    table.get("run_dir")?.as_str().map(PathBuf::from)
}

/// Polls the files of a run until it is dropped, on its own thread, so that a hanging file system blocks nothing else.
#[derive(Debug)]
pub struct Watcher {
    _stop: mpsc::Sender<()>,
}

impl Watcher {
    /// Calls `on_progress` after every change. Initial file contents count as a change only if they were written after
    /// `since`. The files are read once more when the watcher is dropped.
    pub fn start(run_dir: &Path, since: SystemTime, on_progress: impl Fn(Progress) + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let mut files = RunFiles::new(run_dir, since);
        // Without the thread, the attempt has no progress to show; its end is still detected by other means.
        let _ = thread::Builder::new().name("status".into()).spawn(move || {
            loop {
                let is_last = stopped.recv_timeout(POLL_INTERVAL) != Err(RecvTimeoutError::Timeout);
                if let Some(progress) = files.poll() {
                    on_progress(progress);
                }
                if is_last {
                    return;
                }
            }
        });
        Self { _stop: stop }
    }
}

/// Fields of `status.json` that show whether training is alive.
#[derive(Debug, Clone, PartialEq)]
struct StatusFields {
    state: String,
    step: u64,
    updated_unix: f64,
}

impl StatusFields {
    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        Some(Self {
            state: value.get("state")?.as_str()?.to_owned(),
            step: value.get("step")?.as_u64()?,
            updated_unix: value.get("updated_unix")?.as_f64()?,
        })
    }
}

/// Contents of the files at the last poll.
struct RunFiles {
    status: PathBuf,
    log: PathBuf,
    fields: Option<StatusFields>,
    epochs: Option<u64>,
    since: f64,
}

impl RunFiles {
    fn new(run_dir: &Path, since: SystemTime) -> Self {
        let (status, log) = (run_dir.join("status.json"), run_dir.join("log.jsonl"));
        let since = since.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let mut files = Self { status, log, fields: None, epochs: None, since };
        files.fields = files.read_status().filter(|fields| fields.updated_unix < files.since);
        files
    }

    /// Returns the progress if anything has changed. The log is used only if there is no status.
    fn poll(&mut self) -> Option<Progress> {
        if let Some(fields) = self.read_status() {
            let is_new = self.fields.as_ref() != Some(&fields);
            let step = fields.step;
            self.fields = Some(fields);
            return is_new.then_some(Progress::Step(step));
        }
        let epochs = fs::read_to_string(&self.log).ok().and_then(|text| epochs_in(&text));
        let is_new = epochs != self.epochs;
        self.epochs = epochs;
        epochs.filter(|_| is_new).map(Progress::Epochs)
    }

    fn read_status(&self) -> Option<StatusFields> {
        fs::read_to_string(&self.status).ok().as_deref().and_then(StatusFields::parse)
    }
}

/// Returns the number of epochs in a `log.jsonl`.
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
    fn parses_the_run_directory_as_toml() {
        assert_eq!(run_dir(r#"run_dir = "/data/my \"runs\"/fold_0""#), Some(r#"/data/my "runs"/fold_0"#.into()));
        assert_eq!(run_dir("run_dir = 'a'"), Some("a".into()));
        for line in ["run_dir", "run_dir = 3", "run_dir_x = 'a'", "the run_dir = 'a'"] {
            assert_eq!(run_dir(line), None, "{line}");
        }
    }

    #[test]
    fn poll_returns_only_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.json");
        fs::write(&path, status("training", 7, 100)).unwrap();
        let mut files = RunFiles::new(folder.path(), UNIX_EPOCH + Duration::from_secs(200));
        assert_eq!(files.poll(), None);
        fs::write(&path, status("training", 7, 201)).unwrap();
        assert_eq!(files.poll(), Some(Progress::Step(7)));
        assert_eq!(files.poll(), None);
        fs::write(&path, status("validating", 7, 201)).unwrap();
        assert_eq!(files.poll(), Some(Progress::Step(7)));
        fs::write(&path, "{").unwrap();
        assert_eq!(files.poll(), None);
    }

    #[test]
    fn reports_a_status_written_before_the_first_poll() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("status.json"), status("training", 3, 201)).unwrap();
        let mut files = RunFiles::new(folder.path(), UNIX_EPOCH + Duration::from_secs(200));
        assert_eq!(files.poll(), Some(Progress::Step(3)));
    }

    #[test]
    fn reads_epochs_from_the_log_without_a_status() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log.jsonl"), "{\"epoch\":0}\n{\"epoch\":1}\n").unwrap();
        let mut files = RunFiles::new(folder.path(), SystemTime::now());
        assert_eq!(files.poll(), Some(Progress::Epochs(2)));
        assert_eq!(files.poll(), None);
    }
}
