//! Timeline of thread activity over a few steps (`train --profile`).
//!
//! Code marks blocking work with [`span`], and asynchronous work with [`flight`]. Without an active recording, each
//! costs one atomic load. [`start`] begins a recording and [`stop`] returns its events; [`chrome_trace`] merges the
//! recordings of several processes into a file for trace viewers.

mod chrome;
mod recorder;

pub use chrome::{RankTrace, chrome_trace};
pub use recorder::{Event, Flight, Kind, Span, flight, is_on, now_us, span, span_of, start, stop};
