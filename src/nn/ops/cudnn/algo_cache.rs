//! Benchmark cache: the fastest engine of each problem, in one file per GPU model and cuDNN version.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::graph::ConvProblem;
use nnunet_core::fsio;

/// Environment variable with the cache folder.
const VARIABLE: &str = "NNUNET_DIST_CACHE";
/// Format version of the file. Files of other versions are ignored.
const FORMAT: u32 = 1;

/// Benchmark result of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlgoCacheEntry {
    /// cuDNN's index of the engine and the position of its configuration among the candidates; `None` if no engine
    /// supports the problem.
    pub engine: Option<(i64, usize)>,
    /// Time of one run in seconds.
    pub seconds: f64,
    /// Required workspace in bytes.
    pub workspace: usize,
    /// Time of one run of Burn's kernel in seconds, if measured.
    #[serde(default)]
    pub burn_seconds: Option<f64>,
}

impl AlgoCacheEntry {
    /// Whether to run Burn's kernel instead of cuDNN.
    pub fn prefers_burn(&self) -> bool {
        self.engine.is_none() || self.burn_seconds.is_some_and(|seconds| seconds < self.seconds)
    }
}

/// Benchmark results of one GPU.
pub(super) struct AlgoCache {
    /// `None` if there is no cache folder.
    path: Option<PathBuf>,
    entries: BTreeMap<String, AlgoCacheEntry>,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    #[serde(rename = "choices")]
    entries: BTreeMap<String, AlgoCacheEntry>,
}

impl AlgoCache {
    /// Reads the cache of a GPU and a cuDNN version. A damaged file causes a warning and is overwritten later.
    pub(super) fn open(folder: Option<&Path>, gpu: &str, version: &str) -> Self {
        let path = folder.map(Path::to_owned).or_else(default_folder).map(|folder| {
            let name: String = gpu.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            folder.join(format!("convolutions-{name}-cudnn-{version}.json"))
        });
        let entries = path.as_deref().map(read).unwrap_or_default();
        Self { path, entries }
    }

    pub(super) fn get(&self, problem: &ConvProblem) -> Option<AlgoCacheEntry> {
        self.entries.get(&problem.to_string()).copied()
    }

    /// Stores a result in memory and in the file, merged with the results that other processes have written.
    pub(super) fn put(&mut self, problem: &ConvProblem, entry: AlgoCacheEntry) {
        self.entries.insert(problem.to_string(), entry);
        let Some(path) = &self.path else { return };
        let mut entries = read(path);
        entries.extend(self.entries.iter().map(|(key, entry)| (key.clone(), *entry)));
        self.entries = entries;
        if let Err(error) = write(path, &File { format: FORMAT, entries: self.entries.clone() }) {
            tracing::warn!("{}: {error}; convolutions will be benchmarked again in the next run", path.display());
            self.path = None;
        }
    }
}

fn read(path: &Path) -> BTreeMap<String, AlgoCacheEntry> {
    let Ok(text) = fs::read_to_string(path) else { return BTreeMap::new() };
    match serde_json::from_str::<File>(&text) {
        Ok(file) if file.format == FORMAT => file.entries,
        Ok(_) => BTreeMap::new(),
        Err(error) => {
            tracing::warn!("{}: {error}; convolutions will be benchmarked again", path.display());
            BTreeMap::new()
        }
    }
}

fn write(path: &Path, file: &File) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fsio::write_json(path, file)
}

/// Returns `$NNUNET_DIST_CACHE`, or a folder in the user's cache folder.
fn default_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(VARIABLE).or_else(|| {
        let caches = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        caches.map(|folder| folder.join("nnunet-dist"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::BufferDtype;
    use crate::ops::ConvPass;

    fn problem(c_out: usize) -> ConvProblem {
        ConvProblem {
            pass: ConvPass::BackwardWeights,
            n: 2,
            input: [8, 9, 10],
            c_in: 4,
            c_out,
            kernel: [3; 3],
            stride: [1, 2, 2],
            padding: [1; 3],
            dtype: BufferDtype::Bf16,
            weight_dtype: BufferDtype::F32,
            tf32: false,
        }
    }

    const ENTRY: AlgoCacheEntry =
        AlgoCacheEntry { engine: Some((12, 3)), seconds: 1e-3, workspace: 4096, burn_seconds: None };

    #[test]
    fn processes_share_one_cache_file() {
        let folder = tempfile::tempdir().unwrap();
        let open = || AlgoCache::open(Some(folder.path()), "NVIDIA H100", "9.10.2");
        let (mut first, mut second) = (open(), open());
        first.put(&problem(8), ENTRY);
        second.put(&problem(16), AlgoCacheEntry { engine: None, ..ENTRY });
        let third = open();
        assert_eq!(third.get(&problem(8)), Some(ENTRY));
        assert!(third.get(&problem(16)).unwrap().prefers_burn());
        assert_eq!(third.get(&problem(32)), None);
        assert_eq!(AlgoCache::open(Some(folder.path()), "NVIDIA H200", "9.10.2").get(&problem(8)), None);
    }

    #[test]
    fn overwrites_a_damaged_cache_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("convolutions-H100-cudnn-9.1.0.json");
        fs::write(&file, "{\"format\": 1, \"choi").unwrap();
        let mut cache = AlgoCache::open(Some(folder.path()), "H100", "9.1.0");
        assert_eq!(cache.get(&problem(8)), None);
        cache.put(&problem(8), ENTRY);
        assert_eq!(AlgoCache::open(Some(folder.path()), "H100", "9.1.0").get(&problem(8)), Some(ENTRY));
    }

    #[test]
    fn prefers_the_faster_kernel() {
        assert!(!ENTRY.prefers_burn());
        assert!(AlgoCacheEntry { burn_seconds: Some(5e-4), ..ENTRY }.prefers_burn());
        assert!(!AlgoCacheEntry { burn_seconds: Some(5e-3), ..ENTRY }.prefers_burn());
    }
}
