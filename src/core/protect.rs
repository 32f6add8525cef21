//! Protection of input files: a command must not replace a file that it reads.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files that must not be replaced. They are compared by device and inode, so links do not hide them.
#[derive(Clone, Debug, Default)]
pub struct Inputs(HashMap<(u64, u64), PathBuf>);

/// An output that is an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputOverwritten {
    /// The output.
    pub output: PathBuf,
    /// The input that is the same file.
    pub input: PathBuf,
}

impl Inputs {
    /// Protects files; those that do not exist are ignored.
    pub fn new<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        let mut inputs = Self::default();
        inputs.extend(paths);
        inputs
    }

    /// Protects further files.
    pub fn extend<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>) {
        for path in paths {
            if let Ok(key) = key(path.as_ref()) {
                self.0.entry(key).or_insert_with(|| path.as_ref().to_owned());
            }
        }
    }

    /// Protects the files in a folder, without its subfolders.
    pub fn with_folder(mut self, folder: &Path) -> Self {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        self.extend(entries.map(|entry| entry.path()).filter(|path| path.is_file()));
        self
    }

    /// Checks an output before the first write.
    ///
    /// # Errors
    /// Returns an error if the output exists and is one of the inputs, also through a link.
    pub fn check(&self, output: &Path) -> Result<(), InputOverwritten> {
        match key(output).ok().and_then(|key| self.0.get(&key)) {
            Some(input) => Err(InputOverwritten { output: output.to_owned(), input: input.clone() }),
            None => Ok(()),
        }
    }

    /// Checks all files that a command may write into a folder under the names of its inputs.
    ///
    /// # Errors
    /// Returns an error that names the first output that is an input.
    pub fn check_same_names(&self, folder: &Path) -> Result<(), InputOverwritten> {
        let names = self.0.values().filter_map(|path| path.file_name());
        names.map(|name| folder.join(name)).try_for_each(|output| self.check(&output))
    }
}

fn key(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl fmt::Display for InputOverwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, input } = self;
        let same = if output == input { String::new() } else { format!(" ({})", input.display()) };
        write!(f, "{}: would replace an input of this command{same}; choose another output", output.display())
    }
}

impl std::error::Error for InputOverwritten {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_hide_an_input() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("image"), "image").unwrap();
        fs::create_dir(path("other")).unwrap();
        std::os::unix::fs::symlink(path("image"), path("link")).unwrap();
        fs::hard_link(path("image"), path("other/image")).unwrap();
        std::os::unix::fs::symlink(folder.path(), path("again")).unwrap();
        let inputs = Inputs::new([path("image"), path("missing")]);
        for output in ["image", "link", "other/image", "again/image", "./other/../image"] {
            assert!(inputs.check(&path(output)).is_err(), "{output}");
        }
        assert!(inputs.check(&path("new")).is_ok() && inputs.check(&path("missing")).is_ok());
        assert!(inputs.check_same_names(&path("other")).is_err());
        assert!(Inputs::default().with_folder(folder.path()).check(&path("link")).is_err());
    }
}
