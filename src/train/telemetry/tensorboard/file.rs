//! A file of events, to which is only added.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::event::{Event, START, SessionLog, VERSION, What};
use nnunet_comm::distributed::host_name;

/// How the names of event files begin; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// A file of whole events.
pub struct EventFile {
    path: PathBuf,
    file: File,
    /// Length of the file: whole events.
    length: u64,
    warned: bool,
}

impl EventFile {
    /// Begins a file in `folder`, after those that are there, for a run that goes on at `step`; at 0 they are removed.
    ///
    /// # Errors
    /// The folder cannot be written to.
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

    /// Adds an event. Where the disk is full it is left out, which is no reason to end a run.
    pub fn add(&mut self, event: &Event) {
        if let Err(error) = self.append(event)
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!("{}: {error}; events are left out, the run goes on", self.path.display());
        }
    }

    /// Appends an event, wholly or not at all.
    fn append(&mut self, event: &Event) -> io::Result<()> {
        let bytes = event.framed();
        if let Err(error) = self.file.write_all(&bytes) {
            // Shortening a file needs no room.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// The event files in a folder.
fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let is_events = |path: &PathBuf| file_name(path).starts_with(PREFIX);
    paths.filter(|path| path.as_ref().map_or(true, is_events)).collect()
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A name that TensorBoard reads after those of `others`: times of ten digits are in the order of their letters.
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
        // A run that begins anew has nothing to do with what was there.
        let anew = EventFile::begin(folder.path(), 0).unwrap();
        assert_eq!(files(), std::slice::from_ref(&anew.path));
        assert!(anew.path > paths[2] && folder.path().join("notes.txt").exists());
    }
}
