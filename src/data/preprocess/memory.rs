//! How many cases are in memory at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The most bytes that preprocessing one case takes, before anything of it is cropped.
///
/// Reading and cropping hold the image twice, each time with labels and a mask; resampling holds the image before and
/// after, with labels, and one channel's spline coefficients.
pub fn need(channels: usize, raw: [usize; 3], resampled: [usize; 3]) -> u64 {
    let voxels = |shape: [usize; 3]| shape.into_iter().fold(1u64, |product, n| product.saturating_mul(n as u64));
    let (raw, resampled, channels) = (voxels(raw), voxels(resampled), channels as u64);
    // Four bytes per intensity, two per label, one per flag.
    let cropping = raw.saturating_mul(8 * channels + 8);
    let resampling = raw.saturating_mul(4 * channels + 7).saturating_add(resampled.saturating_mul(4 * channels + 2));
    cropping.max(resampling)
}

/// Memory that cases share: each is admitted when there is room for it, in the order of asking.
pub struct Budget {
    bytes: u64,
    used: Mutex<u64>,
    freed: Condvar,
    /// Held by the case whose turn it is, so that small cases do not overtake a large one for ever.
    turn: Mutex<()>,
}

impl Budget {
    /// A budget of so many bytes, all free.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, used: Mutex::new(0), freed: Condvar::new(), turn: Mutex::new(()) }
    }

    /// Whether a case of this need fits in at all. One that does not is admitted, too, but only alone.
    pub fn holds(&self, need: u64) -> bool {
        need <= self.bytes
    }

    /// Waits for room and takes it until the admission is dropped.
    pub fn admit(&self, need: u64) -> Admission<'_> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let has_no_room = |used: &mut u64| *used > 0 && used.saturating_add(need) > self.bytes;
        let mut used = self.freed.wait_while(self.used(), has_no_room).unwrap_or_else(PoisonError::into_inner);
        // Of a case beyond the budget, no more than what keeps all others out, so that the sum cannot overflow.
        let taken = need.min(self.bytes.saturating_add(1));
        *used += taken;
        Admission { budget: self, taken }
    }

    fn used(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that a case has.
pub struct Admission<'a> {
    budget: &'a Budget,
    taken: u64,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        *self.budget.used() -= self.taken;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_case_needs_what_its_arrays_take() {
        // Coarser: cropping needs the most, the image twice and a little.
        assert_eq!(need(1, [10; 3], [5; 3]), 16_000);
        // Twice as fine: the image once and its eightfold.
        assert_eq!(need(2, [10; 3], [20; 3]), 15_000 + 80_000);
        assert_eq!(need(1, [usize::MAX; 3], [1; 3]), u64::MAX);
    }

    /// Threads that hold these needs one after the other: the most bytes and the most cases that were in at a time.
    fn most_at_a_time(budget: &Budget, needs: &[u64]) -> (u64, usize) {
        let (bytes, cases) = (AtomicU64::new(0), AtomicUsize::new(0));
        let (most_bytes, most_cases) = (AtomicU64::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for &need in needs {
                let (bytes, cases, most_bytes, most_cases) = (&bytes, &cases, &most_bytes, &most_cases);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let _admission = budget.admit(need);
                        most_bytes.fetch_max(bytes.fetch_add(need, Ordering::SeqCst) + need, Ordering::SeqCst);
                        most_cases.fetch_max(cases.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now();
                        bytes.fetch_sub(need, Ordering::SeqCst);
                        cases.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(*budget.used(), 0, "all is given back");
        (most_bytes.into_inner(), most_cases.into_inner())
    }

    #[test]
    fn cases_together_stay_within_the_budget() {
        let (bytes, cases) = most_at_a_time(&Budget::new(10), &[3, 4, 5, 6, 10, 1]);
        assert!(bytes <= 10 && cases <= 3, "{bytes} bytes in {cases} cases");
    }

    #[test]
    fn what_fits_is_admitted_at_once_and_what_does_not_waits_its_turn() {
        let budget = Budget::new(10);
        let (first, _second) = (budget.admit(4), budget.admit(6));
        thread::scope(|scope| {
            let third = scope.spawn(|| drop(budget.admit(4)));
            assert!(!third.is_finished());
            drop(first);
        });
    }

    #[test]
    fn a_case_beyond_the_budget_runs_alone() {
        let budget = Budget::new(10);
        assert!(budget.holds(10) && !budget.holds(11));
        let (_, cases) = most_at_a_time(&budget, &[11, 1000, u64::MAX / 64]);
        assert_eq!(cases, 1);
        let (bytes, _) = most_at_a_time(&budget, &[2, 100, 3]);
        assert_eq!(bytes, 100, "nothing joins it");
    }
}
