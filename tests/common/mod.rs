//! Helpers shared by the integration tests.
#![allow(dead_code)]

use std::path::PathBuf;

use super::skip::skip;

/// The folder with real data and reference fixtures: `$NNUNET_TEST_DATA`, or `../shared` next to the checkout.
///
/// Returns `None` and prints a line if it does not exist.
pub fn shared() -> Option<PathBuf> {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // The tests of the GPU kernels are a package in a folder of the checkout.
    let beside = ["../shared", "../../../shared"].map(|place| package.join(place));
    let roots = std::env::var_os("NNUNET_TEST_DATA").map_or(beside.to_vec(), |root| vec![root.into()]);
    let found = roots.iter().find(|root| root.join("fixtures").is_dir());
    if found.is_none() {
        skip(format_args!("no reference data in {} (set NNUNET_TEST_DATA)", roots[0].display()));
    }
    found.cloned()
}

/// All files in `folder` (below the shared root) with this `ending`, sorted. Panics if there are none.
pub fn fixtures(folder: &str, ending: &str) -> Vec<PathBuf> {
    let Some(root) = shared() else { return Vec::new() };
    let folder = root.join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(ending)))
        .collect();
    assert!(!paths.is_empty(), "{}: no *{ending}", folder.display());
    paths.sort();
    paths
}
