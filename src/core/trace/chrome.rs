//! Chrome trace format.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Event, EventKind};

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

    fn event(name: &str, kind: EventKind, begin_us: f64) -> Event {
        let (detail, thread) = (String::new(), (0, "main".to_owned()));
        Event { name: name.into(), detail, kind, thread, begin_us, length_us: 5.0 }
    }

    #[test]
    fn all_ranks_are_on_the_clock_of_the_first() {
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
