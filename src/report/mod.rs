//! Reports of a run from its files, during training or afterwards: text for the terminal, or an HTML page.
//!
//! [`RunFiles`] reads all files of a run; [`RunStatus`] is its status, which `status` prints and which heads every page.
//! [`page`] assembles the page from its sections, one module each. Pages are written with `maud`, which escapes text;
//! their charts are those of [`nnunet_viz::chart`], and they load no external resources.

mod cases;
mod curves;
mod details;
mod elements;
mod format;
mod page;
mod run_files;
mod run_status;
mod terminal;

pub use page::page;
pub use run_files::{ReportError, RunFiles, find_runs};
pub use run_status::{LastCheckpoint, RunStatus, Validated};
pub use terminal::{line_per_run, lines};
