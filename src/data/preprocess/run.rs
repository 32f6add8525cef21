//! Preprocessing of all training cases of a dataset, on all cores.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::manifest::{Manifest, RawFile};
use super::memory::{self, MemoryBudget};
use super::{PreprocessError, Preprocessor};
use crate::dataset::{CaseFiles, Dataset, DatasetError};
use crate::plan::Plans;
use crate::store::{self, StoreError};
use nnunet_comm::distributed::{Communicator, ReduceOp, check_consistency, own_partition};
use nnunet_core::fsio;
use nnunet_core::lock::FolderLock;
use nnunet_core::memory::memory_limit;
use nnunet_image as image;

/// Cases in flight per thread: while one is read or written, another is computed.
const CASES_PER_THREAD: usize = 2;

/// Result of [`preprocess_dataset`].
#[derive(Clone, Debug, PartialEq)]
pub struct PreprocessSummary {
    /// Number of cases written, over all ranks.
    pub cases: usize,
    /// Voxels written, over all cases; channels are not counted separately.
    pub voxels: usize,
    /// Wall time.
    pub elapsed: Duration,
}

/// Resource limits of preprocessing per rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// Number of compute threads; 0 uses one per core of the rank.
    pub threads: usize,
    /// Maximum total memory of the cases in flight, in bytes; `None` uses half of the memory limit (machine or control
    /// group) divided by the number of ranks on the host.
    pub memory: Option<u64>,
}

impl ResourceLimits {
    /// Creates limits with this number of threads and the default memory limit.
    pub fn threads(threads: usize) -> Self {
        Self { threads, memory: None }
    }

    fn budget(self, comm: &dyn Communicator) -> MemoryBudget {
        let default = || memory_limit().map_or(u64::MAX, |bytes| bytes / 2 / comm.local_size().max(1) as u64);
        MemoryBudget::new(self.memory.unwrap_or_else(default))
    }
}

/// Preprocesses every case of the dataset into the store at `out_dir`, replacing its contents when all cases are
/// complete, with a [`Manifest`](super::Manifest).
///
/// The cases are partitioned over the ranks by file size. Each rank keeps up to two cases per thread in flight, so that
/// threads compute while others wait for the disk, but no more than fit into its memory limit according to the image
/// headers; a case over the limit is processed alone, with a warning. The output does not depend on the limits.
/// `on_case` is called with the name of each case that this rank finishes, on any thread.
///
/// # Errors
/// Returns the error of the first case of this rank that fails, with its name; no further cases are started, and
/// the store keeps its former contents.
pub fn preprocess_dataset(
    dataset: &Dataset,
    plans: &Plans,
    configuration: &str,
    out_dir: &Path,
    limits: ResourceLimits,
    on_case: &(dyn Fn(&str) + Sync),
    comm: &dyn Communicator,
) -> Result<PreprocessSummary, PreprocessError> {
    let began = Instant::now();
    let preprocessor = Preprocessor::new(plans, configuration, &dataset.json)?;
    let costs: Vec<u64> = dataset.cases.iter().map(CaseFiles::bytes).collect();
    let listing: Vec<_> = dataset.cases.iter().map(|case| &case.id).zip(&costs).collect();
    check_consistency(comm, "images to preprocess", format!("{listing:?}").as_bytes())?;
    let staging = Staging::create(out_dir, comm)?;
    comm.enter_unbounded("preprocessing");
    let cases: Vec<&CaseFiles> = own_partition(comm, &costs).into_iter().map(|number| &dataset.cases[number]).collect();
    let threads = if limits.threads == 0 { rayon::current_num_threads() } else { limits.threads };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|cause| PreprocessError::Threads { jobs: threads, cause })?;
    let pipeline = CasePipeline {
        preprocessor,
        channels: dataset.json.channel_names.len(),
        pool,
        budget: limits.budget(comm),
        out_dir: &staging.folder,
        dataset: &dataset.root,
    };
    let records = Mutex::new(BTreeMap::new());
    let voxels = AtomicUsize::new(0);
    // One feeder thread per case in flight: with a parallel iterator over the cases, a thread waiting for a subtask of
    // one case could start another case, and the number of cases in memory would be unbounded.
    for_each_until_error(&cases, CASES_PER_THREAD * threads, &|files| -> Result<(), PreprocessError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| pipeline.preprocess(files)));
        let (written, record) = outcome.unwrap_or_else(|_| Err(PreprocessError::Panic { case: files.id.clone() }))?;
        voxels.fetch_add(written, Ordering::Relaxed);
        records.lock().unwrap_or_else(PoisonError::into_inner).insert(files.id.clone(), record);
        on_case(&files.id);
        Ok(())
    })?;
    let own = serde_json::to_vec(&records.into_inner().unwrap_or_else(PoisonError::into_inner))
        .expect("paths and numbers serialize to JSON");
    let all = comm.all_gather_bytes(&own, "records of the preprocessed cases")?;
    if comm.rank() == 0 {
        // The messages are from the same program, so they are valid.
        let parse = |part: &Vec<u8>| serde_json::from_slice::<BTreeMap<String, CaseRecord>>(part).unwrap_or_default();
        let records = all.iter().flat_map(parse);
        let (raw, checksums) = records.map(|(id, case)| ((id.clone(), case.raw), (id, case.checksums))).unzip();
        store::save_checksums(&staging.folder, &checksums)?;
        Manifest::new(plans, configuration, &dataset.json, raw)?.save(&staging.folder)?;
    }
    staging.publish(out_dir, comm)?;
    let mut voxels = [voxels.into_inner() as f64];
    comm.all_reduce_f64(&mut voxels, ReduceOp::Sum, "preprocessed voxels")?;
    Ok(PreprocessSummary { cases: dataset.cases.len(), voxels: voxels[0] as usize, elapsed: began.elapsed() })
}

/// Record of a finished case.
#[derive(Serialize, Deserialize)]
struct CaseRecord {
    raw: Vec<RawFile>,
    checksums: [u32; 2],
}

/// A folder beside the store, which replaces it when all cases are complete. Until then, the store keeps its contents.
struct Staging {
    folder: PathBuf,
    /// On rank 0: deletes the folder of a failed run, and holds the lock of the store.
    owned: Option<(TempDir, FolderLock)>,
}

impl Staging {
    /// Creates the folder on rank 0. A collective.
    fn create(out_dir: &Path, comm: &dyn Communicator) -> Result<Self, PreprocessError> {
        let parent = fsio::parent(out_dir);
        let fail = |error: io::Error| StoreError { path: out_dir.to_owned(), defect: format!("cannot write: {error}") };
        let mut owned = None;
        let mut name = Vec::new();
        if comm.rank() == 0 {
            std::fs::create_dir_all(parent).map_err(fail)?;
            let store = out_dir.file_name().unwrap_or_default().to_string_lossy();
            let lock = FolderLock::acquire(parent, &format!(".{store}.lock"))?;
            let folder = fsio::partial_folder(parent).map_err(fail)?;
            name = folder.path().file_name().unwrap_or_default().as_bytes().to_vec();
            owned = Some((folder, lock));
        }
        let mut length = (name.len() as u64).to_le_bytes();
        comm.broadcast_bytes(&mut length, 0, "folder of the preprocessed cases")?;
        name.resize(u64::from_le_bytes(length) as usize, 0);
        comm.broadcast_bytes(&mut name, 0, "folder of the preprocessed cases")?;
        Ok(Self { folder: parent.join(OsStr::from_bytes(&name)), owned })
    }

    /// Replaces the store by the folder. A collective.
    fn publish(self, out_dir: &Path, comm: &dyn Communicator) -> Result<(), PreprocessError> {
        if let Some((folder, _lock)) = self.owned {
            let fail = |error: io::Error| StoreError {
                path: out_dir.to_owned(),
                defect: format!("cannot replace the store: {error}"),
            };
            store::move_other_files(out_dir, folder.path())?;
            fsio::replace_folder(&folder.keep(), out_dir).map_err(fail)?;
        }
        Ok(comm.barrier("end of preprocessing")?)
    }
}

/// State shared by all cases of a run.
struct CasePipeline<'a> {
    preprocessor: Preprocessor,
    /// Number of image channels of the dataset.
    channels: usize,
    /// Compute threads.
    pool: ThreadPool,
    budget: MemoryBudget,
    out_dir: &'a Path,
    /// Folder of the raw dataset.
    dataset: &'a Path,
}

impl CasePipeline<'_> {
    /// Reads, preprocesses and writes one case; returns the number of voxels written, and the record of the case.
    fn preprocess(&self, files: &CaseFiles) -> Result<(usize, CaseRecord), PreprocessError> {
        let id = || files.id.clone();
        let unreadable = |cause| PreprocessError::Read { case: id(), cause };
        let need = self.case_memory_bound(files).map_err(unreadable)?;
        let _permit = self.budget.acquire(need);
        if !self.budget.fits(need) {
            tracing::warn!(
                "case {}: may need {} MB, over the memory limit; preprocessing it alone",
                files.id,
                need / 1_000_000
            );
        }
        let preprocessed = self.pool.install(|| {
            let case = files.load(self.channels).map_err(unreadable)?;
            let prepared = self.preprocessor.prepare(&case)?;
            drop(case);
            Ok::<_, PreprocessError>(self.preprocessor.resample_and_locate(prepared))
        })?;
        // Not in the pool, so that its threads do not block on the disk.
        store::write_case(self.out_dir, &files.id, &preprocessed)
            .map_err(|cause| PreprocessError::Write { case: id(), cause })?;
        let raw = RawFile::of_case(files, self.dataset).map_err(|cause| PreprocessError::Raw { case: id(), cause })?;
        let record = CaseRecord { raw, checksums: store::checksums_of(&preprocessed) };
        Ok((preprocessed.properties.shape_after_resampling.iter().product(), record))
    }

    /// Returns an upper bound on the memory of a case in bytes, from the header of its first image.
    fn case_memory_bound(&self, files: &CaseFiles) -> Result<u64, DatasetError> {
        let Some(first) = files.images.first() else { return Ok(0) };
        let header = image::read_header(first)?;
        let [channels, raw @ ..] = header.shape;
        Ok(memory::case_memory_bound(
            channels.max(self.channels),
            raw,
            self.preprocessor.shape_after_resampling(&header),
        ))
    }
}

/// Processes all items on `threads` threads; starts no more items after the first error, and returns it.
fn for_each_until_error<T: Sync, E: Send>(
    items: &[T],
    threads: usize,
    work: &(dyn Fn(&T) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let first_error = Mutex::new(None);
    let feed = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(feed);
        }
    });
    first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_stops_the_rest() {
        let items: Vec<usize> = (0..1000).collect();
        let done = AtomicUsize::new(0);
        let result = for_each_until_error(&items, 1, &|&item| {
            done.fetch_add(1, Ordering::Relaxed);
            if item == 3 { Err(item) } else { Ok(()) }
        });
        assert_eq!(result, Err(3));
        assert_eq!(done.into_inner(), 4);
    }

    #[test]
    fn every_item_is_processed_once_with_any_number_of_threads() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [1, 3, 200] {
            let sum = AtomicUsize::new(0);
            let result = for_each_until_error(&items, threads, &|&item| {
                sum.fetch_add(item, Ordering::Relaxed);
                Ok::<_, ()>(())
            });
            assert_eq!((result, sum.into_inner()), (Ok(()), 4950));
        }
    }
}
