//! NVIDIA's libraries: the driver ([`Driver`]), and the search for the others ([`open_first`]), which are installed in the
//! system or by pip in a Python environment. All are loaded at run time, so that one binary runs on machines with and
//! without them.

mod driver;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

pub use self::driver::{Context, Driver, DriverError, Event, Memory, Stream, has_bf16, memory_in_use};

/// Loads the first library that can be opened: the one named by the environment variable `variable` (a file, or a
/// folder to search), otherwise the system's, otherwise one in an active Python environment, below
/// `nvidia/PACKAGE/lib`.
///
/// # Errors
/// Returns an error if no library can be opened. A library named by the user is never replaced by another.
pub fn open_first(variable: &str, names: &[&str], package: &str) -> Result<(Library, PathBuf), String> {
    open(variable, env::var_os(variable).map(PathBuf::from), names, package)
}

fn open(variable: &str, asked: Option<PathBuf>, names: &[&str], package: &str) -> Result<(Library, PathBuf), String> {
    let paths: Vec<PathBuf> = match &asked {
        Some(path) => candidates(path, names, package),
        None => {
            let environments = environments();
            let packaged = environments.iter().flat_map(|root| candidates(root, names, package));
            names.iter().map(PathBuf::from).chain(packaged).collect()
        }
    };
    for path in paths {
        // SAFETY: any process may run the initializers of NVIDIA's libraries.
        if let Ok(library) = unsafe { Library::new(&path) } {
            return Ok((library, path));
        }
    }
    Err(match asked {
        Some(path) => format!("{variable}={}: no {} can be opened there", path.display(), names[0]),
        None => format!("{} is not found", names[0]),
    })
}

/// Returns the candidate files for a path named by the user: the file itself, files in that folder, in Python packages
/// in it, or in a Python environment at it.
fn candidates(path: &Path, names: &[&str], package: &str) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut sites = vec![path.to_owned()];
    let entries = fs::read_dir(path.join("lib")).into_iter().flatten().flatten();
    let packages = entries.flat_map(|entry| ["site-packages", "dist-packages"].map(|site| entry.path().join(site)));
    sites.extend(packages.filter(|site| site.is_dir()));
    let folders = sites.into_iter().flat_map(|site| [site.join("nvidia").join(package).join("lib"), site]);
    folders.flat_map(|folder| names.iter().map(move |name| folder.join(name))).filter(|file| file.is_file()).collect()
}

/// Returns the active Python environments.
fn environments() -> Vec<PathBuf> {
    ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

    #[test]
    fn finds_libraries_in_python_packages_of_a_named_folder() {
        let folder = tempfile::tempdir().unwrap();
        let site = folder.path().join("lib/python3.12/site-packages");
        let lib = site.join("nvidia/nccl/lib");
        fs::create_dir_all(&lib).unwrap();
        let file = lib.join(NAMES[0]);
        fs::write(&file, "").unwrap();
        for named in [folder.path(), site.as_path(), lib.as_path(), file.as_path()] {
            assert_eq!(candidates(named, &NAMES, "nccl"), [file.as_path()], "{}", named.display());
        }
    }

    #[test]
    fn rejects_a_missing_named_library() {
        let error = open("NNUNET_DIST_NCCL", Some("/nowhere/libnccl.so.2".into()), &NAMES, "nccl").err().unwrap();
        assert_eq!(error, "NNUNET_DIST_NCCL=/nowhere/libnccl.so.2: no libnccl.so.2 can be opened there");
    }
}
