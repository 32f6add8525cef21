//! Profiles the time of a step by operation and shape.
//!
//! When disabled, it costs one atomic load per operation. When enabled, each operation of a backend that calls [`span`]
//! adds its time. Operations run one after the other, so their times add up to the step's time, except for the time
//! between operations.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ENABLED: AtomicBool = AtomicBool::new(false);
/// Nanoseconds spent inside a library since the last span ended.
static IN_LIBRARY: AtomicU64 = AtomicU64::new(0);
static ENTRIES: Mutex<BTreeMap<Operation, OpStats>> = Mutex::new(BTreeMap::new());

/// An operation and the shape of its operands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// Name, e.g. `conv` or `norm_act`.
    pub name: &'static str,
    /// Shape, e.g. `n x c_in -> c_out @ z x y x x`.
    pub shape: String,
}

/// Statistics of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpStats {
    /// Number of calls.
    pub calls: u64,
    /// Total time of all calls.
    pub time: Duration,
    /// Part of `time` spent in a library's kernel.
    pub in_library: Duration,
    /// Floating-point operations of all calls; 0 for memory-bound operations.
    pub flops: f64,
}

/// Runs `run` with profiling enabled. Returns its result and the statistics per operation. Must not be nested.
pub fn record<T>(run: impl FnOnce() -> T) -> (T, BTreeMap<Operation, OpStats>) {
    entries().clear();
    ENABLED.store(true, Ordering::Relaxed);
    let result = run();
    ENABLED.store(false, Ordering::Relaxed);
    (result, std::mem::take(&mut *entries()))
}

/// Times the enclosing scope if profiling is enabled.
pub(super) fn span(name: &'static str, describe: impl FnOnce() -> (String, f64)) -> Option<Span> {
    ENABLED.load(Ordering::Relaxed).then(|| {
        let (shape, flops) = describe();
        Span { operation: Some(Operation { name, shape }), flops, began: Instant::now() }
    })
}

/// Runs a library's kernel within a span and counts its time as library time.
pub(super) fn in_library<T>(run: impl FnOnce() -> T) -> T {
    if !ENABLED.load(Ordering::Relaxed) {
        return run();
    }
    let began = Instant::now();
    let result = run();
    IN_LIBRARY.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

pub(super) struct Span {
    /// Taken when the span ends.
    operation: Option<Operation>,
    flops: f64,
    began: Instant,
}

impl Drop for Span {
    fn drop(&mut self) {
        let time = self.began.elapsed();
        let Some(operation) = self.operation.take() else { return };
        let mut entries = entries();
        let entry = entries.entry(operation).or_default();
        entry.calls += 1;
        entry.time += time;
        entry.in_library += Duration::from_nanos(IN_LIBRARY.swap(0, Ordering::Relaxed));
        entry.flops += self.flops;
    }
}

fn entries() -> std::sync::MutexGuard<'static, BTreeMap<Operation, OpStats>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}
