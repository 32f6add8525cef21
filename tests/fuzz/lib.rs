//! Helpers of the fuzz targets: bytes become files, and a reader must return an error or a value, in limited memory.

#[path = "../common/counting.rs"]
mod counting;

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nnunet_dist::image::{read_header, read_labels, read_volume};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// The folder of this process, below `NNUNET_FUZZ_FOLDER` if that is set; `tests/fuzz/run` removes it at the end.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let make = || {
        let parent = std::env::var_os("NNUNET_FUZZ_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
        TempDir::with_prefix_in("files-", parent).expect("a folder for the files")
    };
    FOLDER.get_or_init(make).path()
}

/// Writes `bytes` to a file of this name.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("room for a small file");
    path
}

/// Panics if `read` allocates more memory than is allowed for a small file.
pub fn in_little_memory(read: impl FnOnce()) {
    let ((), taken) = counting::peak_of(read);
    assert!(taken <= counting::MEMORY, "{} MiB for a small file", taken >> 20);
}

/// Runs every reader for images of this file name.
pub fn read_image(name: &str, bytes: &[u8]) {
    let path = file(name, bytes);
    in_little_memory(|| {
        let _ = read_header(&path);
        let _ = read_volume(&path);
        let _ = read_labels(&path);
    });
}

/// A zip archive of these entries, so that fuzzed contents have valid checksums.
pub fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(*name, options).and_then(|()| Ok(archive.write_all(bytes)?)).expect("written to memory");
    }
    archive.finish().expect("written to memory").into_inner()
}
