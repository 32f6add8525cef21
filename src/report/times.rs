//! Time breakdown of a run.

use super::Run;
use super::html::{Html, join, table, tag, text};
use super::text::{duration, percent};

/// Parts of the total time of all epochs, as a bar and as a table.
pub fn times(run: &Run) -> Html {
    let parts = Parts::of(run);
    let total = parts.total();
    if total <= 0.0 {
        return tag("p", &[], [text("No epoch has finished yet.")]);
    }
    let named = parts.named();
    let piece = |(colour, (name, seconds)): (usize, &(&str, f64))| {
        let (class, style) = (format!("c{colour}"), format!("--part:{:.2}%", 100.0 * seconds / total));
        tag("span", &[("class", &class), ("style", &style), ("title", name)], [])
    };
    let bar = tag("div", &[("class", "parts"), ("aria-hidden", "true")], named.iter().enumerate().map(piece));
    let row = |(colour, (name, seconds)): (usize, &(&'static str, f64))| {
        let name = tag("span", &[("class", &format!("key c{colour}"))], [text(name)]);
        vec![name, text(duration(*seconds)), text(percent(seconds / total))]
    };
    let rows = named.iter().enumerate().map(row);
    let all = vec![text("all epochs"), text(duration(total)), text(percent(1.0))];
    let table = table(&["part", "time", "share"], rows.chain([all]));
    let note = "The prediction of the held-out cases after the last epoch is not included.";
    join([bar, table, tag("p", &[("class", "note")], [text(note)])])
}

/// Seconds over all epochs, mean over the processes.
#[derive(Debug, Default, PartialEq)]
struct Parts {
    computing: f64,
    data: f64,
    /// Without waiting for slower processes.
    communicating: f64,
    stragglers: f64,
    checkpoints: f64,
    rest: f64,
}

impl Parts {
    fn of(run: &Run) -> Self {
        let steps = run.steps_per_epoch().unwrap_or(0) as f64;
        let mut parts = Self::default();
        for record in run.log.iter().filter(|record| record.epoch_s.is_finite()) {
            let in_steps = (record.step_s * steps).min(record.epoch_s);
            let waiting = record.data_wait_s + record.comm_s;
            parts.computing += (in_steps - waiting).max(0.0);
            parts.data += record.data_wait_s;
            parts.communicating += (record.comm_s - record.straggler_s).max(0.0);
            parts.stragglers += record.straggler_s;
            parts.checkpoints += record.checkpoint_s;
            parts.rest += record.epoch_s - in_steps;
        }
        parts
    }

    /// Names and seconds, in the color order of the step time chart.
    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("computing", self.computing),
            ("waiting for data", self.data),
            ("communicating", self.communicating),
            ("waiting for slower processes", self.stragglers),
            ("waiting for checkpoints", self.checkpoints),
            ("patch validation and other", self.rest),
        ]
    }

    fn total(&self) -> f64 {
        self.named().iter().map(|(_, seconds)| seconds).sum()
    }
}
