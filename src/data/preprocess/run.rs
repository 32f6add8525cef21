//! All training cases of a dataset, on all cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

use super::granted::granted_memory;
use super::memory::{self, Budget};
use super::{PreprocessError, Preprocessor};
use crate::dataset::{CaseFiles, Dataset, DatasetError};
use crate::plan::Plans;
use crate::store;
use nnunet_comm::distributed::{Communicator, ReduceOp, check_agreement, share_of};
use nnunet_image as image;

/// Cases in flight: while one is written, another is read or computed.
const CASES_PER_THREAD: usize = 2;

/// What [`preprocess_dataset`] did.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Number of cases written: all of the dataset's.
    pub cases: usize,
    /// Voxels written, over all cases, counted once for all channels.
    pub voxels: usize,
    /// Wall time.
    pub elapsed: Duration,
}

/// What preprocessing may use of a rank's machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Threads that compute; 0: one per core of the rank's.
    pub threads: usize,
    /// Bytes that the cases in flight may take together; `None`: half of what machine or control group grant to the ranks
    /// of a host, divided by their number.
    pub memory: Option<u64>,
}

impl Limits {
    /// So many threads, and the default memory.
    pub fn threads(threads: usize) -> Self {
        Self { threads, memory: None }
    }

    fn budget(self, comm: &dyn Communicator) -> Budget {
        let default = || granted_memory().map_or(u64::MAX, |bytes| bytes / 2 / comm.local_size().max(1) as u64);
        Budget::new(self.memory.unwrap_or_else(default))
    }
}

/// Preprocesses every case of the dataset into the store at `out_dir`, replacing what is there.
///
/// The ranks divide the cases by the size of their files. Each rank has up to two cases per thread in flight, so that
/// the threads compute while others wait for the disk, but no more than fit into its memory together by what their
/// headers say; a case too large for that is done alone, with a warning. What is written does not depend on the limits.
/// `on_case` is told the name of each case that this rank has done, from whichever thread did it.
///
/// # Errors
/// Of the first case of this rank that fails, by name; no further case is begun then, and the finished ones stay.
pub fn preprocess_dataset(
    dataset: &Dataset,
    plans: &Plans,
    configuration: &str,
    out_dir: &Path,
    limits: Limits,
    on_case: &(dyn Fn(&str) + Sync),
    comm: &dyn Communicator,
) -> Result<Report, PreprocessError> {
    let began = Instant::now();
    let preprocessor = Preprocessor::new(plans, configuration, &dataset.json)?;
    let costs: Vec<u64> = dataset.cases.iter().map(CaseFiles::bytes).collect();
    let listing: Vec<_> = dataset.cases.iter().map(|case| &case.id).zip(&costs).collect();
    check_agreement(comm, "images to preprocess", format!("{listing:?}").as_bytes())?;
    if comm.rank() == 0 {
        store::clear(out_dir)?;
    }
    comm.barrier("begin of preprocessing")?;
    comm.enter_long("preprocessing");
    let cases: Vec<&CaseFiles> = share_of(comm, &costs).into_iter().map(|number| &dataset.cases[number]).collect();
    let threads = if limits.threads == 0 { rayon::current_num_threads() } else { limits.threads };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|cause| PreprocessError::Threads { jobs: threads, cause })?;
    let line =
        Line { preprocessor, channels: dataset.json.channel_names.len(), pool, budget: limits.budget(comm), out_dir };
    let voxels = AtomicUsize::new(0);
    // One feeder per case in flight: were the cases themselves a parallel iterator, a thread that waits for a part of
    // one case could begin another, and the number in memory would have no bound.
    for_each_until_error(&cases, CASES_PER_THREAD * threads, &|files| -> Result<(), PreprocessError> {
        let outcome = catch_unwind(AssertUnwindSafe(|| line.preprocess(files)));
        let written = outcome.unwrap_or_else(|_| Err(PreprocessError::Panic { case: files.id.clone() }))?;
        voxels.fetch_add(written, Ordering::Relaxed);
        on_case(&files.id);
        Ok(())
    })?;
    let mut voxels = [voxels.into_inner() as f64];
    comm.all_reduce_f64(&mut voxels, ReduceOp::Sum, "preprocessed voxels")?;
    Ok(Report { cases: dataset.cases.len(), voxels: voxels[0] as usize, elapsed: began.elapsed() })
}

/// What every case passes through.
struct Line<'a> {
    preprocessor: Preprocessor,
    /// Of the dataset's images.
    channels: usize,
    /// The threads that compute.
    pool: ThreadPool,
    budget: Budget,
    out_dir: &'a Path,
}

impl Line<'_> {
    /// Reads, preprocesses and writes one case; gives the number of voxels written.
    fn preprocess(&self, files: &CaseFiles) -> Result<usize, PreprocessError> {
        let id = || files.id.clone();
        let unreadable = |cause| PreprocessError::Read { case: id(), cause };
        let need = self.need(files).map_err(unreadable)?;
        let _admission = self.budget.admit(need);
        if !self.budget.holds(need) {
            tracing::warn!(
                "case {}: may need {} MB, more than the bound on memory; it is preprocessed alone",
                files.id,
                need / 1_000_000
            );
        }
        let preprocessed = self.pool.install(|| {
            let case = files.load(self.channels).map_err(unreadable)?;
            let prepared = self.preprocessor.prepare(&case)?;
            drop(case);
            Ok::<_, PreprocessError>(self.preprocessor.finish(prepared))
        })?;
        // Outside of the pool, whose threads have better to do than to wait for the disk.
        store::write_case(self.out_dir, &files.id, &preprocessed)
            .map_err(|cause| PreprocessError::Write { case: id(), cause })?;
        Ok(preprocessed.properties.shape_after_resampling.iter().product())
    }

    /// The memory that a case takes at most, by the header of its first image.
    fn need(&self, files: &CaseFiles) -> Result<u64, DatasetError> {
        let Some(first) = files.images.first() else { return Ok(0) };
        let header = image::read_header(first)?;
        let [channels, raw @ ..] = header.shape;
        Ok(memory::need(channels.max(self.channels), raw, self.preprocessor.shape_after_resampling(&header)))
    }
}

/// Does the work for all items on `threads` threads; after the first error, which it gives, begins no more.
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
    fn every_item_is_done_once_on_any_number_of_threads() {
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
