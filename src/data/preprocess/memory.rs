//! Memory of preprocessing: the need of a case, and the budget shared by cases.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Returns an upper bound on the memory needed to preprocess one case without cropping, in bytes.
///
/// Reading and cropping hold two copies of the image, each with labels and a mask; resampling holds the image before
/// and after, with labels, and the spline coefficients of one channel.
pub(super) fn case_memory_bound(channels: usize, raw: [usize; 3], resampled: [usize; 3]) -> u64 {
    let voxels = |shape: [usize; 3]| shape.into_iter().fold(1u64, |product, n| product.saturating_mul(n as u64));
    let (raw, resampled, channels) = (voxels(raw), voxels(resampled), channels as u64);
    // Four bytes per intensity, two per label, one per mask voxel.
    let cropping = raw.saturating_mul(8 * channels + 8);
    let resampling = raw.saturating_mul(4 * channels + 7).saturating_add(resampled.saturating_mul(4 * channels + 2));
    cropping.max(resampling)
}

/// A memory budget shared by cases: each case starts, in request order, as soon as enough memory is free.
pub(super) struct MemoryBudget {
    bytes: u64,
    used: Mutex<u64>,
    freed: Condvar,
    /// Held by the case at the head of the queue, so that small cases cannot starve a large one.
    queue: Mutex<()>,
}

impl MemoryBudget {
    /// Creates a budget of `bytes` bytes.
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes, used: Mutex::new(0), freed: Condvar::new(), queue: Mutex::new(()) }
    }

    /// Returns true if a case needing `need` bytes fits the budget. A larger case also gets a permit, but only alone.
    pub(super) fn fits(&self, need: u64) -> bool {
        need <= self.bytes
    }

    /// Blocks until enough memory is free and reserves it until the returned guard is dropped.
    pub(super) fn acquire(&self, need: u64) -> Permit<'_> {
        let _queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let has_no_room = |used: &mut u64| *used > 0 && used.saturating_add(need) > self.bytes;
        let mut used = self.freed.wait_while(self.used(), has_no_room).unwrap_or_else(PoisonError::into_inner);
        // A case larger than the budget reserves only one byte more than the budget, so that the sum cannot overflow.
        let taken = need.min(self.bytes.saturating_add(1));
        *used += taken;
        Permit { budget: self, taken }
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guard for memory reserved from a [`MemoryBudget`].
pub(super) struct Permit<'a> {
    budget: &'a MemoryBudget,
    taken: u64,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.budget.used() -= self.taken;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn the_bound_of_a_case_is_the_size_of_its_arrays() {
        // Downsampling: cropping needs the most, two copies of the image plus labels and masks.
        assert_eq!(case_memory_bound(1, [10; 3], [5; 3]), 16_000);
        // Upsampling by 2: the image once, plus eight times its size.
        assert_eq!(case_memory_bound(2, [10; 3], [20; 3]), 15_000 + 80_000);
        assert_eq!(case_memory_bound(1, [usize::MAX; 3], [1; 3]), u64::MAX);
    }

    /// Runs threads with these needs; returns the largest number of bytes and of cases held at the same time.
    fn most_at_a_time(budget: &MemoryBudget, needs: &[u64]) -> (u64, usize) {
        let (bytes, cases) = (AtomicU64::new(0), AtomicUsize::new(0));
        let (most_bytes, most_cases) = (AtomicU64::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for &need in needs {
                let (bytes, cases, most_bytes, most_cases) = (&bytes, &cases, &most_bytes, &most_cases);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let _permit = budget.acquire(need);
                        most_bytes.fetch_max(bytes.fetch_add(need, Ordering::SeqCst) + need, Ordering::SeqCst);
                        most_cases.fetch_max(cases.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now();
                        bytes.fetch_sub(need, Ordering::SeqCst);
                        cases.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(*budget.used(), 0, "all memory is released");
        (most_bytes.into_inner(), most_cases.into_inner())
    }

    #[test]
    fn cases_together_stay_within_the_budget() {
        let (bytes, cases) = most_at_a_time(&MemoryBudget::new(10), &[3, 4, 5, 6, 10, 1]);
        assert!(bytes <= 10 && cases <= 3, "{bytes} bytes in {cases} cases");
    }

    #[test]
    fn a_fitting_case_proceeds_and_a_larger_one_waits_in_order() {
        let budget = MemoryBudget::new(10);
        let (first, _second) = (budget.acquire(4), budget.acquire(6));
        thread::scope(|scope| {
            let third = scope.spawn(|| drop(budget.acquire(4)));
            assert!(!third.is_finished());
            drop(first);
        });
    }

    #[test]
    fn a_case_beyond_the_budget_runs_alone() {
        let budget = MemoryBudget::new(10);
        assert!(budget.fits(10) && !budget.fits(11));
        let (_, cases) = most_at_a_time(&budget, &[11, 1000, u64::MAX / 64]);
        assert_eq!(cases, 1);
        let (bytes, _) = most_at_a_time(&budget, &[2, 100, 3]);
        assert_eq!(bytes, 100, "no other case runs with it");
    }
}
