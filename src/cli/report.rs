//! `nnunet-dist report`

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;

use super::output::outln;
use crate::report::{RunFiles, page};
use nnunet_core::fsio;
use nnunet_data::work::ConfigError;
use nnunet_data::work::WorkDir;

/// Write an HTML report of a run: curves, Dice per class and case, pictures of the worst cases, timing.
///
/// The report is one file without external resources. The run may still be in progress.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist report hippocampus/runs/3d_fullres/fold_0
  nnunet-dist report runs/old -w hippocampus --worst 10 -o old.html")]
pub struct Report {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// Output file [default: report.html in the run directory].
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,

    /// Work folder of the run, needed to find the images [default: the one that contains the run directory].
    #[arg(short, long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// Number of cases to show as pictures, starting with the lowest Dice.
    #[arg(long, value_name = "N", default_value_t = 3)]
    worst: usize,
}

impl Report {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let work = self.work.map(WorkDir::new);
        let page = page(&RunFiles::read(&self.run, work.as_ref())?, self.worst, SystemTime::now())?;
        let path = self.output.unwrap_or_else(|| self.run.join("report.html"));
        let is_report = path.extension().is_some_and(|ending| ending == "html");
        if !is_report && path.exists() {
            let defect = "exists and is not an HTML file; choose another output";
            return Err(ConfigError::new(path.display(), defect).into());
        }
        fsio::write_bytes(&path, page.as_bytes()).with_context(|| path.display().to_string())?;
        outln!("{}", path.display());
        Ok(())
    }
}
