//! Pages of the book that are generated from a program's help texts.

use std::fs;
use std::path::Path;

/// Compares a page with its expected text, or writes it if `NNUNET_UPDATE_DOCS=1` is set.
#[track_caller]
pub fn check(page: &str, wanted: &str) {
    // The launcher is a package in a folder of the checkout.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.ancestors().find(|folder| folder.join("docs").is_dir()).unwrap();
    let path = root.join(page);
    if std::env::var_os("NNUNET_UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    let line = differs.unwrap_or_else(|| found.lines().count().min(wanted.lines().count()));
    assert!(
        found == wanted,
        "{page} is not up to date from line {} on: run `make docs`\nis:        {}\nshould be: {}",
        line + 1,
        found.lines().nth(line).unwrap_or(""),
        wanted.lines().nth(line).unwrap_or(""),
    );
}
