//! A small file system that can be filled.
// Each test program uses a part of this module.
#![allow(dead_code)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::skip::skip;

/// A small tmpfs.
pub struct SmallDisk {
    pub folder: PathBuf,
}

impl SmallDisk {
    /// Mounts it; returns `None` and prints the reason if that is impossible.
    pub fn mount(folder: PathBuf, bytes: usize) -> Option<Self> {
        fs::create_dir_all(&folder).unwrap();
        let size = format!("size={bytes}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { folder }),
            _ => {
                skip("only root can mount a small disk (mount -t tmpfs)");
                None
            }
        }
    }

    /// Fills it completely. Returns the path of the filler file.
    pub fn fill(&self) -> PathBuf {
        let path = self.folder.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        let block = vec![0_u8; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}
