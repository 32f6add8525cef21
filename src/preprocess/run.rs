//! All training cases of a dataset, on all cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{PreprocessError, Preprocessor};
use crate::dataset::{CaseFiles, Dataset};
use crate::dist::{Communicator, ReduceOp, check_agreement, share_of};
use crate::plan::Plans;
use crate::store;

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

/// Preprocesses every case of the dataset into the store at `out_dir`, replacing what is there.
///
/// The ranks divide the cases by the size of their files. At most `jobs` cases are in memory of each at a time, on as many
/// threads (0: one per core of the rank's). `on_case` is told the name of each case that this rank has done, from
/// whichever thread did it.
///
/// # Errors
/// Of the first case of this rank that fails, by name; no further case is begun then, and the finished ones stay.
pub fn preprocess_dataset(
    dataset: &Dataset,
    plans: &Plans,
    configuration: &str,
    out_dir: &Path,
    jobs: usize,
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
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(if jobs == 0 { rayon::current_num_threads() } else { jobs })
        .build()
        .map_err(|cause| PreprocessError::Threads { jobs, cause })?;
    let voxels = AtomicUsize::new(0);
    // One feeder per case in flight: were the cases themselves a parallel iterator, a thread that waits for a part of
    // one case could begin another, and the number in memory would have no bound.
    for_each_until_error(&cases, pool.current_num_threads(), &|files| -> Result<(), PreprocessError> {
        let outcome =
            catch_unwind(AssertUnwindSafe(|| pool.install(|| preprocess_case(&preprocessor, dataset, files, out_dir))));
        let written = outcome.unwrap_or_else(|_| Err(PreprocessError::Panic { case: files.id.clone() }))?;
        voxels.fetch_add(written, Ordering::Relaxed);
        on_case(&files.id);
        Ok(())
    })?;
    let mut voxels = [voxels.into_inner() as f64];
    comm.all_reduce_f64(&mut voxels, ReduceOp::Sum, "preprocessed voxels")?;
    Ok(Report { cases: dataset.cases.len(), voxels: voxels[0] as usize, elapsed: began.elapsed() })
}

/// Reads, preprocesses and writes one case; gives the number of voxels written.
fn preprocess_case(
    preprocessor: &Preprocessor,
    dataset: &Dataset,
    files: &CaseFiles,
    out_dir: &Path,
) -> Result<usize, PreprocessError> {
    let id = || files.id.clone();
    let case =
        files.load(dataset.json.channel_names.len()).map_err(|cause| PreprocessError::Read { case: id(), cause })?;
    let preprocessed = preprocessor.run(&case)?;
    drop(case);
    store::write_case(out_dir, &files.id, &preprocessed)
        .map_err(|cause| PreprocessError::Write { case: id(), cause })?;
    Ok(preprocessed.properties.shape_after_resampling.iter().product())
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
