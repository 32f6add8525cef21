//! Timeline of some steps on all ranks (`train --profile`).

use std::path::PathBuf;

use super::TrainError;
use crate::telemetry::TelemetryError;
use nnunet_comm::distributed::{CommError, Communicator, host_name};
use nnunet_core::fsio;
use nnunet_core::trace::{self, Event, EventKind, RankTrace, chrome_trace};

/// Span name of a step; the spans of its parts are nested in it.
pub(super) const STEP: &str = "step";

/// Records steps, starting with the second step of this process: the first step starts threads, tunes kernels and waits
/// for other ranks to do the same.
pub struct Profile {
    /// Number of steps to record; 0 when done.
    steps: usize,
    /// Number of steps made by this process.
    made: usize,
    /// Clock offset; set while recording.
    clock: Option<Clock>,
    path: PathBuf,
}

impl Profile {
    /// Creates a profile that records `steps` steps to a file at `path`; 0 disables it.
    pub fn new(steps: usize, path: PathBuf) -> Self {
        Self { steps, made: 0, clock: None, path }
    }

    /// Starts recording when due; a collective in that case.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn before_step(&mut self, comm: &dyn Communicator) -> Result<(), TrainError> {
        if self.steps > 0 && self.made == 1 {
            self.clock = Some(Clock::compare(comm)?);
            trace::start();
        }
        Ok(())
    }

    /// Stops recording when all steps are recorded; a collective in that case.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    pub fn after_step(&mut self, comm: &dyn Communicator) -> Result<(), TrainError> {
        self.made += 1;
        if self.made > self.steps { self.finish(comm) } else { Ok(()) }
    }

    /// Writes the recorded steps on rank 0, if any. A collective.
    ///
    /// # Errors
    /// Returns an error if a rank is lost. If the file cannot be written, there is only a warning, since this must not
    /// end the training.
    pub fn finish(&mut self, comm: &dyn Communicator) -> Result<(), TrainError> {
        let Some(clock) = self.clock.take() else { return Ok(()) };
        let events = trace::stop();
        let steps = self.made - 1;
        self.steps = 0;
        let own = RankTrace { host: host_name(), ahead_us: clock.ahead_us(), events };
        let failed = |error| TelemetryError::invalid(&self.path, error);
        let own = serde_json::to_vec(&own).map_err(failed)?;
        let ranks = comm.all_gather_bytes(&own, "recorded steps")?;
        if comm.rank() > 0 {
            return Ok(());
        }
        let ranks: Vec<RankTrace> =
            ranks.iter().map(|rank| serde_json::from_slice(rank)).collect::<Result<_, _>>().map_err(failed)?;
        let path = self.path.display();
        match fsio::write_json(&self.path, &chrome_trace(&ranks)) {
            Ok(()) => tracing::info!(
                "{path}: {steps} step(s) of {} rank(s), for ui.perfetto.dev or chrome://tracing; {}",
                ranks.len(),
                summary(&ranks)
            ),
            Err(error) => tracing::warn!("{path}: {error}; training continues without the recorded steps"),
        }
        Ok(())
    }
}

/// Summarizes the mean step time and its parts over all ranks, largest part first.
fn summary(ranks: &[RankTrace]) -> String {
    let is_step = |event: &&Event| event.name == STEP;
    let steps: Vec<&Event> = ranks.iter().flat_map(|rank| rank.events.iter().filter(is_step)).collect();
    let total: f64 = steps.iter().map(|step| step.length_us).sum();
    let mut parts: Vec<(&str, f64)> = Vec::new();
    for rank in ranks {
        let steps: Vec<&Event> = rank.events.iter().filter(is_step).collect();
        let of_steps = rank.events.iter().filter(|event| steps.iter().any(|step| contains(step, event)));
        for event in of_steps {
            match parts.iter_mut().find(|(name, _)| *name == event.name) {
                Some((_, sum)) => *sum += event.length_us,
                None => parts.push((&event.name, event.length_us)),
            }
        }
    }
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let parts: Vec<_> = parts.iter().map(|(name, sum)| format!("{name} {:.1} %", 100.0 * sum / total)).collect();
    format!("a step takes {:.4} s: {}", total / steps.len() as f64 / 1e6, parts.join(", "))
}

/// Returns whether an event is a part of a step.
fn contains(step: &Event, event: &Event) -> bool {
    event.kind == EventKind::Span
        && event.name != STEP
        && event.thread == step.thread
        && event.begin_us >= step.begin_us
        && event.begin_us + event.length_us <= step.begin_us + step.length_us
}

/// Number of barriers whose end times are compared. The median excludes barriers that were delayed by a busy core.
const ROUNDS: usize = 21;

/// Offset of this process's clock from the clock of rank 0, in microseconds.
///
/// Every process counts time from its own origin. All ranks leave a barrier at about the same moment, so the difference
/// between the times at which they leave is the offset of their clocks, up to the latency of the barrier's last
/// message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Clock {
    ahead_us: f64,
}

impl Clock {
    /// Measures the clock offset of all ranks. A collective.
    ///
    /// # Errors
    /// Returns an error if a rank is lost.
    fn compare(comm: &dyn Communicator) -> Result<Self, CommError> {
        let mut times = [0; ROUNDS * 8];
        for bytes in times.as_chunks_mut().0 {
            comm.barrier("comparison of the clocks")?;
            *bytes = trace::now_us().to_le_bytes();
        }
        let of_all = comm.all_gather_bytes(&times, "clocks")?;
        let first = of_all.first().map_or(&times[..], Vec::as_slice);
        let ends = |bytes: &[u8]| bytes.as_chunks().0.iter().copied().map(f64::from_le_bytes).collect::<Vec<_>>();
        Ok(Self { ahead_us: median(ends(&times).iter().zip(ends(first)).map(|(own, first)| own - first).collect()) })
    }

    /// Returns the offset in microseconds; positive if this clock is ahead of rank 0.
    fn ahead_us(self) -> f64 {
        self.ahead_us
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, kind: EventKind, thread: u64, begin_us: f64, length_us: f64) -> Event {
        Event { name: name.into(), detail: String::new(), kind, thread: (thread, String::new()), begin_us, length_us }
    }

    #[test]
    fn parts_of_steps_are_summed_up_and_nothing_else() {
        let events = vec![
            event("forward", EventKind::Span, 0, 10.0, 300_000.0),
            event("backward", EventKind::Span, 0, 300_020.0, 600_000.0),
            event("sample", EventKind::Span, 1, 20.0, 100.0),
            event("bucket", EventKind::AsyncSpan, 0, 400_000.0, 100.0),
            event(STEP, EventKind::Span, 0, 0.0, 1_000_000.0),
            event("wait for data", EventKind::Span, 0, 2_000_000.0, 100.0),
        ];
        let rank = RankTrace { host: String::new(), ahead_us: 0.0, events };
        let idle = RankTrace { events: vec![event(STEP, EventKind::Span, 0, 0.0, 1_000_000.0)], ..rank.clone() };
        assert_eq!(summary(&[rank, idle]), "a step takes 1.0000 s: backward 30.0 %, forward 15.0 %");
    }

    #[test]
    fn a_late_barrier_does_not_move_the_clock() {
        assert_eq!(median(vec![5.0, 4.0, 900.0, 6.0, 5.0]), 5.0);
        assert_eq!(Clock::compare(&nnunet_comm::distributed::Single).unwrap(), Clock::default());
    }
}
