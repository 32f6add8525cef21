//! Append-only event file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::event::{Event, START, SessionLog, VERSION, What};
use nnunet_comm::distributed::host_name;

/// Name prefix of event files, required by TensorBoard.
const PREFIX: &str = "events.out.tfevents.";

/// A file of complete events.
pub struct EventFile {
    path: PathBuf,
    file: File,
    /// Length of the file in bytes; always complete events.
    length: u64,
    warned: bool,
}

impl EventFile {
    /// Creates a file in `folder` that sorts after the existing ones, for a run that continues at `step`. At step 0 the
    /// existing event files are removed.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written to.
    pub fn begin(folder: &Path, step: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let others = event_files(folder)?;
        if step == 0 {
            others.iter().try_for_each(fs::remove_file)?;
        }
        let path = folder.join(name_after(&others));
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        let mut begun = Self { path, file, length: 0, warned: false };
        begun.append(&Event::now(0, What::FileVersion(VERSION.into())))?;
        if step > 0 {
            begun.append(&Event::now(step, What::SessionLog(SessionLog { status: START })))?;
        }
        Ok(begun)
    }

    /// Appends an event. If it cannot be written, for example on a full disk, it is dropped with a warning, since this
    /// must not end the run.
    pub fn add(&mut self, event: &Event) {
        if let Err(error) = self.append(event)
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!("{}: {error}; events are not written, training continues", self.path.display());
        }
    }

    /// Appends an event, all or nothing.
    fn append(&mut self, event: &Event) -> io::Result<()> {
        let bytes = event.framed();
        if let Err(error) = self.file.write_all(&bytes) {
            // Truncating a file needs no disk space.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Returns the event files in a folder.
fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let is_events = |path: &PathBuf| file_name(path).starts_with(PREFIX);
    paths.filter(|path| path.as_ref().map_or(true, is_events)).collect()
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Returns a name that TensorBoard reads after `others`. Times have ten digits, so they sort lexicographically.
fn name_after(others: &[PathBuf]) -> String {
    let time = |path: &PathBuf| file_name(path).strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let time = others.iter().filter_map(time).max().map_or(now, |newest| now.max(newest + 1));
    format!("{PREFIX}{time:010}.{}.{}", host_name(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_follow_each_other_even_within_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let files = || {
            let mut files = event_files(folder.path()).unwrap();
            files.sort();
            files
        };
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let paths = [0, 5, 5].map(|step| EventFile::begin(folder.path(), step).unwrap().path);
        assert_eq!(files(), paths);
        // A run that starts from scratch ignores earlier files.
        let anew = EventFile::begin(folder.path(), 0).unwrap();
        assert_eq!(files(), std::slice::from_ref(&anew.path));
        assert!(anew.path > paths[2] && folder.path().join("notes.txt").exists());
    }
}
