//! Timeline of thread activity over a few steps (`train --profile`).
//!
//! Code marks blocking work with [`span`], and asynchronous work with [`async_span`]. Without an active recording, each
//! costs one atomic load. [`start`] begins a recording and [`stop`] returns its events; [`chrome_trace`] merges the
//! recordings of several processes into a file for trace viewers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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

/// Recorded events of a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankTrace {
    /// Host name.
    pub host: String,
    /// Offset of its clock from the clock of rank 0, in microseconds; positive if it is ahead.
    pub ahead_us: f64,
    pub events: Vec<Event>,
}

/// Merges the recordings of ranks 0, 1, … into one Chrome trace ("Trace Event Format", also read by Perfetto): one
/// process per rank, one track per thread, all on the clock of rank 0, starting at 0.
pub fn chrome_trace(ranks: &[RankTrace]) -> Value {
    let begin = |trace: &RankTrace, event: &Event| event.begin_us - trace.ahead_us;
    let begins = ranks.iter().flat_map(|trace| trace.events.iter().map(move |event| begin(trace, event)));
    let origin = begins.fold(f64::INFINITY, f64::min);
    let mut events = Vec::new();
    for (rank, trace) in ranks.iter().enumerate() {
        events.push(name(rank, None, "process_name", &format!("rank {rank} ({})", trace.host)));
        events.push(json!({"ph": "M", "pid": rank, "name": "process_sort_index", "args": {"sort_index": rank}}));
        let threads: BTreeSet<_> = trace.events.iter().map(|event| &event.thread).collect();
        events.extend(threads.into_iter().map(|(number, text)| name(rank, Some(*number), "thread_name", text)));
        for (number, event) in trace.events.iter().enumerate() {
            entries(rank, number, event, begin(trace, event) - origin, &mut events);
        }
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}

/// Creates a metadata entry with the name of a process or a thread.
fn name(rank: usize, thread: Option<u64>, what: &str, text: &str) -> Value {
    let mut entry = json!({"ph": "M", "pid": rank, "name": what, "args": {"name": text}});
    if let Some(number) = thread {
        entry["tid"] = number.into();
    }
    entry
}

/// Appends the entries of an event. A span has one entry; an async span has a begin and an end entry, paired by `id`.
fn entries(rank: usize, number: usize, event: &Event, begin_us: f64, to: &mut Vec<Value>) {
    let (name, length_us) = (&event.name, event.length_us);
    let entry = |phase: &str, at: f64| json!({"name": name, "ph": phase, "pid": rank, "tid": event.thread.0, "ts": at});
    match event.kind {
        EventKind::Span => {
            let mut entry = entry("X", begin_us);
            entry["dur"] = length_us.into();
            if !event.detail.is_empty() {
                entry["args"] = json!({"of": event.detail});
            }
            to.push(entry);
        }
        EventKind::AsyncSpan => {
            for (phase, at) in [("b", begin_us), ("e", begin_us + length_us)] {
                let mut entry = entry(phase, at);
                entry["cat"] = "flight".into();
                entry["id"] = format!("{rank}.{number}").into();
                to.push(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A single test, because the recording is global to the process.
    #[test]
    fn records_only_events_that_end_during_the_recording() {
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

    fn event(name: &str, kind: EventKind, begin_us: f64) -> Event {
        let (detail, thread) = (String::new(), (0, "main".to_owned()));
        Event { name: name.into(), detail, kind, thread, begin_us, length_us: 5.0 }
    }

    #[test]
    fn all_ranks_use_the_clock_of_rank_0() {
        let rank = |ahead_us, events| RankTrace { host: "node1".into(), ahead_us, events };
        let first = rank(0.0, vec![event("step", EventKind::Span, 100.0)]);
        let second =
            rank(1000.0, vec![event("step", EventKind::Span, 1103.0), event("bucket 1", EventKind::AsyncSpan, 1104.0)]);
        let trace = chrome_trace(&[first, second]);
        let entries = trace["traceEvents"].as_array().unwrap();
        let of = |phase: &str| entries.iter().filter(|entry| entry["ph"] == phase).collect::<Vec<_>>();
        let steps: Vec<_> = of("X").iter().map(|entry| (&entry["pid"], &entry["ts"], &entry["dur"])).collect();
        assert_eq!(steps, [(&json!(0), &json!(0.0), &json!(5.0)), (&json!(1), &json!(3.0), &json!(5.0))]);
        assert_eq!((&of("b")[0]["ts"], &of("e")[0]["ts"]), (&json!(4.0), &json!(9.0)));
        assert_eq!(of("b")[0]["id"], of("e")[0]["id"]);
        let names: Vec<_> = of("M").iter().filter_map(|entry| entry["args"]["name"].as_str()).collect();
        assert_eq!(names, ["rank 0 (node1)", "main", "rank 1 (node1)", "main"]);
    }
}
