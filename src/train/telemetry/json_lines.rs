//! `log.jsonl`: one JSON object per epoch.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{EpochRecord, Observer, TelemetryError};
use nnunet_core::fsio;

/// Appends one line per epoch, each in a single write. A line that cannot be written, for example on a full disk, is
/// written with the next one.
pub struct JsonLines {
    path: PathBuf,
    file: File,
    /// Length of the file in bytes; always complete lines.
    length: u64,
    /// Lines that are not in the file yet.
    waiting: String,
}

impl JsonLines {
    /// Opens the log to continue at `next_epoch`. Entries of this and later epochs, left by a run that died after its
    /// last checkpoint, are removed, as is a partial last line. With `next_epoch` 0 the file is recreated.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or written, or a complete line is invalid.
    pub fn open(path: &Path, next_epoch: usize) -> Result<Self, TelemetryError> {
        let fail = |error| TelemetryError::io(path, error);
        let text =
            if next_epoch > 0 && path.exists() { std::fs::read_to_string(path).map_err(fail)? } else { String::new() };
        // Complete lines are kept unchanged: parsing and formatting a number may change its last digit.
        let mut kept = String::new();
        for line in whole_lines(&text) {
            if parse(path, line)?.epoch < next_epoch {
                kept.extend([line.1, "\n"]);
            }
        }
        // On a full disk nothing can be written, but a file can still be truncated.
        if !(next_epoch > 0 && path.exists() && text.starts_with(&kept)) {
            fsio::write_bytes(path, kept.as_bytes()).map_err(fail)?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(fail)?;
        file.set_len(kept.len() as u64).map_err(fail)?;
        Ok(Self { path: path.to_owned(), file, length: kept.len() as u64, waiting: String::new() })
    }

    /// Appends the pending lines, all or nothing.
    fn append(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.write_all(self.waiting.as_bytes()) {
            // Truncating a file needs no disk space.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

impl Drop for JsonLines {
    /// Tries once more to write the pending lines.
    fn drop(&mut self) {
        if let Err(error) = self.append() {
            tracing::warn!(
                "{}: {error}; the last {} line(s) are missing",
                self.path.display(),
                self.waiting.lines().count()
            );
        }
    }
}

impl Observer for JsonLines {
    fn epoch_finished(&mut self, record: &EpochRecord) -> Result<(), TelemetryError> {
        let is_first = self.waiting.is_empty();
        self.waiting += &line(record);
        if let Err(error) = self.append()
            && is_first
        {
            tracing::warn!(
                "{}: {error}; training continues, and the write is retried after each epoch",
                self.path.display()
            );
        }
        Ok(())
    }
}

fn line(record: &EpochRecord) -> String {
    let json = serde_json::to_string(record).expect("a record of numbers is always valid JSON");
    json + "\n"
}

/// Reads a log; a partial last line is ignored.
///
/// # Errors
/// Returns an error if the file cannot be read, or a complete line is invalid.
pub fn read_log(path: &Path) -> Result<Vec<EpochRecord>, TelemetryError> {
    let text = std::fs::read_to_string(path).map_err(|error| TelemetryError::io(path, error))?;
    whole_lines(&text).map(|line| parse(path, line)).collect()
}

/// Returns the complete lines with their numbers; a last line without a line break is ignored.
fn whole_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().enumerate()
}

fn parse(path: &Path, (number, line): (usize, &str)) -> Result<EpochRecord, TelemetryError> {
    serde_json::from_str(line).map_err(|error| TelemetryError::invalid(path, format!("line {}: {error}", number + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_has_each_epoch_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = JsonLines::open(&path, 0).unwrap();
        for epoch in 0..4 {
            log.epoch_finished(&EpochRecord::example(epoch)).unwrap();
        }
        write!(log.file, "{{\"epoch\": 4, \"train_l").unwrap();

        let mut log = JsonLines::open(&path, 3).unwrap();
        log.epoch_finished(&EpochRecord::example(3)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, (0..4).map(|epoch| line(&EpochRecord::example(epoch))).collect::<String>());
        assert_eq!(read_log(&path).unwrap().len(), 4);
        assert!(text.starts_with(r#"{"epoch":0,"train_loss":0.5,"val_loss":0.6,"pseudo_dice":[0.2,null],"ema_"#));
        drop(JsonLines::open(&path, 0).unwrap());
        assert_eq!(read_log(&path).unwrap(), []);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        std::fs::write(&path, "{}\n").unwrap();
        let error = read_log(&path).unwrap_err().to_string();
        assert!(error.contains("log.jsonl: line 1"), "{error}");
    }
}
