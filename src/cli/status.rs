//! `nnunet-dist status`

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::output::out;
use crate::report::{ReportError, RunFiles, RunStatus, find_runs, line_per_run, lines};

/// Clears a terminal and moves the cursor to the upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show run status from the run's files: progress, losses, Dice, speed, last checkpoint; one line each for several
/// runs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist status hippocampus/runs/3d_fullres/fold_0 --watch
  nnunet-dist status hippocampus                      # all runs of the work folder")]
pub struct Status {
    /// Run directories, or folders that contain runs, such as a work folder.
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// Repeat every SECONDS until no run is active [default: print once; without SECONDS, 5].
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5", value_parser = super::positive)]
    watch: Option<f64>,

    /// Print JSON: an array with an object per run; with --watch, one line per update.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        loop {
            let statuses = self.statuses()?;
            let text = self.text(&statuses)?;
            let clear = if self.watch.is_some() && !self.json && stdout().is_terminal() { CLEAR } else { "" };
            out!("{clear}{text}");
            stdout().flush()?;
            let Some(seconds) = self.watch.filter(|_| !statuses.iter().all(RunStatus::has_ended)) else {
                return Ok(());
            };
            thread::sleep(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        }
    }

    fn statuses(&self) -> Result<Vec<RunStatus>, ReportError> {
        let now = SystemTime::now();
        find_runs(&self.runs)?.iter().map(|run| Ok(RunStatus::from_run(&RunFiles::read(run, None)?, now))).collect()
    }

    fn text(&self, statuses: &[RunStatus]) -> serde_json::Result<String> {
        Ok(match statuses {
            statuses if self.json && self.watch.is_some() => serde_json::to_string(statuses)? + "\n",
            statuses if self.json => serde_json::to_string_pretty(statuses)? + "\n",
            [status] => lines(status),
            statuses => line_per_run(statuses),
        })
    }
}
