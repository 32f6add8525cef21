//! Event recorder of this process.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Whether recording is active.
static ON: AtomicBool = AtomicBool::new(false);
static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());
/// Origin of all times.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Number of this thread among the threads that have recorded events.
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// A recorded event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub name: String,
    /// Subject of the event, such as a case or a step; may be empty.
    pub detail: String,
    pub kind: EventKind,
    /// Number and name of the thread on which it started.
    pub thread: (u64, String),
    /// Microseconds since the time origin of the process.
    pub begin_us: f64,
    pub length_us: f64,
}

/// Relation of an event to other events on its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// Blocks its thread; spans on a thread are properly nested.
    Span,
    /// Runs asynchronously to its thread; async spans may overlap.
    AsyncSpan,
}

/// Starts a recording and discards earlier events.
pub fn start() {
    events().clear();
    ON.store(true, Ordering::Relaxed);
}

/// Stops the recording and returns the events that ended during it.
pub fn stop() -> Vec<Event> {
    ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut *events())
}

/// Returns whether recording is active. Callers then synchronize with the device, so that its work is attributed
/// correctly.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Returns microseconds since the time origin of the process, the same origin as for [`Event::begin_us`].
pub fn now_us() -> f64 {
    microseconds(now())
}

fn now() -> Duration {
    ORIGIN.elapsed()
}

/// Starts a span that ends when it is dropped.
pub fn span(name: &'static str) -> Span {
    span_with_detail(name, String::new)
}

/// Like [`span`], with a subject. `detail` is only called while recording.
pub fn span_with_detail(name: &'static str, detail: impl FnOnce() -> String) -> Span {
    Span(OpenEvent::new(EventKind::Span, || name.to_owned(), detail))
}

/// Starts an async span that ends when it is dropped, on any thread.
pub fn async_span(name: impl FnOnce() -> String) -> AsyncSpan {
    AsyncSpan(OpenEvent::new(EventKind::AsyncSpan, name, String::new))
}

/// Guard of a span, see [`span`].
#[must_use = "it ends when it is dropped"]
pub struct Span(#[expect(dead_code, reason = "its drop is what matters")] Option<OpenEvent>);

/// Guard of an async span, see [`async_span`].
#[must_use = "it ends when it is dropped"]
pub struct AsyncSpan(#[expect(dead_code, reason = "its drop is what matters")] Option<OpenEvent>);

/// An event that has not ended.
struct OpenEvent {
    name: String,
    detail: String,
    kind: EventKind,
    thread: (u64, String),
    begin: Duration,
}

impl OpenEvent {
    fn new(kind: EventKind, name: impl FnOnce() -> String, detail: impl FnOnce() -> String) -> Option<Self> {
        is_on().then(|| {
            let thread = std::thread::current();
            let thread = (THREAD.with(|number| *number), thread.name().unwrap_or("thread").to_owned());
            Self { name: name(), detail: detail(), kind, thread, begin: now() }
        })
    }
}

impl Drop for OpenEvent {
    fn drop(&mut self) {
        let length = now().saturating_sub(self.begin);
        if is_on() {
            events().push(Event {
                name: std::mem::take(&mut self.name),
                detail: std::mem::take(&mut self.detail),
                kind: self.kind,
                thread: std::mem::take(&mut self.thread),
                begin_us: microseconds(self.begin),
                length_us: microseconds(length),
            });
        }
    }
}

fn events() -> std::sync::MutexGuard<'static, Vec<Event>> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    // A single test, because the recording is global to the process.
    #[test]
    fn only_what_ends_within_a_recording_is_in_it() {
        drop(span("before"));
        let begun_before = span("begun before");
        start();
        drop(begun_before);
        let flying = async_span(|| "bucket 1".into());
        {
            let _outer = span("step");
            let _inner = span_with_detail("sample", || "case_007".into());
        }
        std::thread::Builder::new().name("mpi progress".into()).spawn(move || drop(flying)).unwrap().join().unwrap();
        let never_ended = span("never ended");
        let events = stop();
        drop(never_ended);
        let found: Vec<_> = events.iter().map(|e| (e.name.as_str(), e.detail.as_str(), e.kind)).collect();
        let expected = [
            ("sample", "case_007", EventKind::Span),
            ("step", "", EventKind::Span),
            ("bucket 1", "", EventKind::AsyncSpan),
        ];
        assert_eq!(found, expected);
        let [inner, outer, flying] = &events[..] else { unreachable!() };
        assert!(outer.begin_us <= inner.begin_us);
        assert!(inner.begin_us + inner.length_us <= outer.begin_us + outer.length_us);
        assert_eq!(flying.thread, outer.thread);
        assert_eq!(stop(), []);
    }
}
