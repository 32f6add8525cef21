//! Whole cases kept in memory, for stores that are slow to read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{CaseInfo, CaseStore, Patch, Region, StoreError};

/// A store that keeps the cases last used, up to a bound.
///
/// The native store is mapped into memory, so that on a local disk the operating system does the same. Over a network it
/// does so less reliably, and drops what other programs push out.
pub struct CachedStore {
    inner: Arc<dyn CaseStore>,
    bound: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cases: HashMap<String, Cached>,
    bytes: usize,
    /// Counts the uses.
    clock: u64,
}

struct Cached {
    case: Arc<Case>,
    bytes: usize,
    last_used: u64,
}

/// A case, or a place for it that the first who comes fills while the others wait; `None` if it could not be read.
type Case = OnceLock<Option<Arc<Patch>>>;

impl CachedStore {
    /// Keeps at most `bound` bytes of cases of `inner`; one that is dropped while a thread reads it lives until that has
    /// done. A case that is larger is always read anew.
    pub fn new(inner: Arc<dyn CaseStore>, bound: usize) -> Self {
        Self { inner, bound, state: Mutex::default() }
    }

    /// Bytes kept at the moment.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// A case, read now if it was not before; `None` if it is too large or cannot be read.
    fn whole(&self, case: &str) -> Result<Option<Arc<Patch>>, StoreError> {
        let info = self.inner.info(case)?;
        let Some(place) = self.place(case, info) else { return Ok(None) };
        let whole = place.get_or_init(|| self.read_whole(case, info).ok().map(Arc::new));
        if whole.is_none() {
            // Who met the error meets it again, by reading from the store itself.
            self.forget(case);
        }
        Ok(whole.clone())
    }

    /// The place of a case; `None` if it is too large.
    fn place(&self, case: &str, info: &CaseInfo) -> Option<Arc<Case>> {
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
        let place = Arc::new(Case::new());
        state.cases.insert(case.to_owned(), Cached { case: place.clone(), bytes, last_used: now });
        Some(place)
    }

    fn read_whole(&self, case: &str, info: &CaseInfo) -> Result<Patch, StoreError> {
        let mut whole = info.blank_patch(info.shape);
        self.inner.read_patch(case, [0; 3], &mut whole)?;
        Ok(whole)
    }

    /// What could not be read may be readable next time.
    fn forget(&self, case: &str) {
        let mut state = self.state();
        if let Some(cached) = state.cases.remove(case) {
            state.bytes -= cached.bytes;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_least_recently_used(&mut self) {
        let oldest = self.cases.iter().min_by_key(|(_, cached)| cached.last_used).map(|(case, _)| case.clone());
        let oldest = oldest.expect("bytes are kept, so there is a case");
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
    /// As [`super::NativeStore::read_patch`].
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
