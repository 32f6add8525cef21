//! In-memory cache of whole cases, for stores that are slow to read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{CaseInfo, CaseStore, Patch, Region, StoreError};

/// A store wrapper that keeps the most recently used cases in memory, up to a size limit.
///
/// The native store is memory-mapped, so for local disks the page cache of the operating system does the same. For
/// network file systems the page cache is less reliable and evicts data under memory pressure of other programs.
pub struct CachedStore {
    inner: Arc<dyn CaseStore>,
    bound: usize,
    state: Mutex<CacheState>,
}

#[derive(Default)]
struct CacheState {
    cases: HashMap<String, Cached>,
    bytes: usize,
    /// Logical clock, incremented on every use.
    clock: u64,
}

struct Cached {
    case: Arc<Case>,
    bytes: usize,
    last_used: u64,
}

/// A cached case, or a slot that the first user fills while others wait; `None` if the case could not be read.
type Case = OnceLock<Option<Arc<Patch>>>;

impl CachedStore {
    /// Creates a cache of at most `bound` bytes of cases of `inner`. An evicted case stays alive while a thread still
    /// reads it. A case larger than the limit is read from `inner` every time.
    pub fn new(inner: Arc<dyn CaseStore>, bound: usize) -> Self {
        Self { inner, bound, state: Mutex::default() }
    }

    /// Returns the number of bytes currently cached.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Returns a case, reading it if it is not cached; `None` if it is too large or cannot be read.
    fn whole(&self, case: &str) -> Result<Option<Arc<Patch>>, StoreError> {
        let info = self.inner.info(case)?;
        let Some(slot) = self.slot(case, info) else { return Ok(None) };
        let whole = slot.get_or_init(|| self.read_whole(case, info).ok().map(Arc::new));
        if whole.is_none() {
            // The caller gets the error itself, by reading from the inner store.
            self.forget(case);
        }
        Ok(whole.clone())
    }

    /// Returns the slot of a case; `None` if it is too large.
    fn slot(&self, case: &str, info: &CaseInfo) -> Option<Arc<Case>> {
        let bytes = info.bytes();
        if bytes > self.bound {
            return None;
        }
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        if let Some(cached) = state.cases.get_mut(case) {
            cached.last_used = now;
            return Some(cached.case.clone());
        }
        while state.bytes + bytes > self.bound {
            state.drop_least_recently_used();
        }
        state.bytes += bytes;
        let slot = Arc::new(Case::new());
        state.cases.insert(case.to_owned(), Cached { case: slot.clone(), bytes, last_used: now });
        Some(slot)
    }

    fn read_whole(&self, case: &str, info: &CaseInfo) -> Result<Patch, StoreError> {
        let mut whole = info.blank_patch(info.shape);
        self.inner.read_patch(case, [0; 3], &mut whole)?;
        Ok(whole)
    }

    /// Drops a failed case from the cache, so that the next call retries it.
    fn forget(&self, case: &str) {
        let mut state = self.state();
        if let Some(cached) = state.cases.remove(case) {
            state.bytes -= cached.bytes;
        }
    }

    fn state(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CacheState {
    fn drop_least_recently_used(&mut self) {
        let oldest = self.cases.iter().min_by_key(|(_, cached)| cached.last_used).map(|(case, _)| case.clone());
        let oldest = oldest.expect("a nonzero cache size implies a cached case");
        if let Some(cached) = self.cases.remove(&oldest) {
            self.bytes -= cached.bytes;
        }
    }
}

impl CaseStore for CachedStore {
    fn case_ids(&self) -> &[String] {
        self.inner.case_ids()
    }

    fn info(&self, case: &str) -> Result<&CaseInfo, StoreError> {
        self.inner.info(case)
    }

    /// # Panics
    /// Panics under the same conditions as [`super::NativeStore::read_patch`].
    fn read_patch(&self, case: &str, lo: [isize; 3], patch: &mut Patch) -> Result<(), StoreError> {
        let size = patch.labels.dim().into();
        match self.whole(case)? {
            Some(whole) => Region { lo, size, ..(&*whole).into() }.copy_to(patch),
            None => self.inner.read_patch(case, lo, patch)?,
        }
        Ok(())
    }

    fn with_region(
        &self,
        case: &str,
        lo: [isize; 3],
        size: [usize; 3],
        scratch: &mut Patch,
        visit: &mut dyn FnMut(Region),
    ) -> Result<(), StoreError> {
        match self.whole(case)? {
            Some(whole) => visit(Region { lo, size, ..(&*whole).into() }),
            None => self.inner.with_region(case, lo, size, scratch, visit)?,
        }
        Ok(())
    }
}
