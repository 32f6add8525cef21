//! Timeline of thread activity over a few steps (`train --profile`).
//!
//! Code marks blocking work with [`span`], and asynchronous work with [`async_span`]. Without an active recording, each
//! costs one atomic load. [`start`] begins a recording and [`stop`] returns its events; [`chrome_trace`] merges the
//! recordings of several processes into a file for trace viewers.

mod chrome;
mod recorder;

pub use chrome::{RankTrace, chrome_trace};
pub use recorder::{AsyncSpan, Event, EventKind, Span, async_span, is_on, now_us, span, span_with_detail, start, stop};
