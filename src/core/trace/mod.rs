//! What each thread does, for a few steps, as a timeline (`train --profile`).
//!
//! Code marks what takes time with [`span`], and what goes on behind other things with [`flight`]. While nobody records
//! that costs a look at a flag. [`start`] begins a recording and [`stop`] gives it; [`chrome_trace`] makes of those of several
//! processes a file that trace viewers open.

mod chrome;
mod recorder;

pub use chrome::{RankTrace, chrome_trace};
pub use recorder::{Event, Flight, Kind, Span, flight, is_on, now_us, span, span_of, start, stop};
