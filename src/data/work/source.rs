//! `source.toml`: the work folder's link to the raw dataset.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, WorkDir, one_line};
use nnunet_core::fsio;

/// Location of the raw dataset of a work folder. Preprocessing and validation read images and labels from there.
///
/// It is a separate file because `dataset.json` has nnU-Net's format and is copied into released models. After moving a
/// dataset, edit this file or run `plan` again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Absolute path of the raw dataset's folder.
    pub dataset: PathBuf,
}

impl Source {
    /// Creates a link to `dataset`, made absolute so that it is valid from any current directory.
    ///
    /// # Errors
    /// Returns an error if the folder does not exist.
    pub fn new(dataset: &Path) -> Result<Self, ConfigError> {
        let dataset = dataset.canonicalize().map_err(|error| ConfigError::new(dataset.display(), error))?;
        Ok(Self { dataset })
    }

    /// Reads the link of a work folder.
    ///
    /// # Errors
    /// Returns an error if the work folder has not been planned, or the file is invalid.
    pub fn load(work: &WorkDir) -> Result<Self, ConfigError> {
        let path = work.source();
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let hint = "run `nnunet-dist plan` first";
            ConfigError::new(path.display(), format_args!("{error}; {hint}"))
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::new(path.display(), one_line(error.message())))
    }

    /// Writes the link into a work folder.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be written.
    pub fn save(&self, work: &WorkDir) -> Result<(), ConfigError> {
        let path = work.source();
        let text = toml::to_string(self).map_err(|error| ConfigError::new(path.display(), error))?;
        fsio::write_bytes(&path, text.as_bytes()).map_err(|error| ConfigError::new(path.display(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_absolute_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let work = WorkDir::new(directory.path().join("w"));
        assert!(Source::load(&work).unwrap_err().to_string().contains("nnunet-dist plan"));
        let source = Source::new(directory.path()).unwrap();
        source.save(&work).unwrap();
        assert!(source.dataset.is_absolute());
        assert_eq!(Source::load(&work).unwrap(), source);
    }
}
