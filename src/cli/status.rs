//! `nnunet-dist status`

use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use clap::Args;

use crate::report::{ReportError, Run, Standing, find_runs, line_per_run, lines};

/// Clears a terminal, and goes to its upper left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Say where runs stand, from their files: progress, losses, Dice, speed, last checkpoint; of several, a line each.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist status hippocampus/runs/3d_fullres/fold_0 --watch
  nnunet-dist status hippocampus                      # all runs of the work folder")]
pub struct Status {
    /// Run directories, or folders with runs in them, such as a work folder.
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// Say it again every so many seconds, until no run is at work [default: say it once; without SECONDS, 5].
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5", value_parser = super::positive)]
    watch: Option<f64>,

    /// Print JSON: an array with an object per run; with --watch one line each time.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<()> {
        loop {
            let standings = self.standings()?;
            let text = self.text(&standings)?;
            let clear = if self.watch.is_some() && !self.json && stdout().is_terminal() { CLEAR } else { "" };
            print!("{clear}{text}");
            stdout().flush()?;
            let Some(seconds) = self.watch.filter(|_| !standings.iter().all(Standing::is_over)) else { return Ok(()) };
            thread::sleep(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        }
    }

    fn standings(&self) -> Result<Vec<Standing>, ReportError> {
        let now = SystemTime::now();
        find_runs(&self.runs)?.iter().map(|run| Ok(Standing::of(&Run::read(run, None)?, now))).collect()
    }

    fn text(&self, standings: &[Standing]) -> serde_json::Result<String> {
        Ok(match standings {
            standings if self.json && self.watch.is_some() => serde_json::to_string(standings)? + "\n",
            standings if self.json => serde_json::to_string_pretty(standings)? + "\n",
            [standing] => lines(standing),
            standings => line_per_run(standings),
        })
    }
}
