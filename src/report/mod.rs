//! What a run tells from its files alone, while it is going and after: a few lines on a terminal, or a page to read.
//!
//! [`Run`] reads all that a run has left, [`Standing`] is where it stands, which `status` prints and every page begins
//! with. [`page`] puts the page together; each of its parts is a file here. HTML is made by [`html`] only, which escapes
//! what it is given, and curves by [`chart`]; a page refers to nothing outside of it.

mod chart;
mod curves;
mod details;
mod error;
mod headline;
mod html;
mod overlays;
mod page;
mod run;
mod standing;
mod tables;
mod terminal;
mod text;
mod times;

pub use error::ReportError;
pub use page::page;
pub use run::{Run, find_runs};
pub use standing::{LastCheckpoint, Standing, Validated};
pub use terminal::{line_per_run, lines};
