//! `nnunet-dist bench`

mod infer;
mod loader;
mod preprocess;
mod resample;
mod step;

use clap::{Args, Subcommand};

use crate::bench::Report;
use crate::dist;

/// Measure how fast a part is on this machine, next to the machine's own peak.
///
/// Prints items per second, TFLOP/s or GB/s, and the share of the peak of a matrix product or a copy, measured in the
/// same run. Everything is generated; no data is needed unless an option names some.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nnunet-dist bench peak")]
pub struct Bench {
    #[command(subcommand)]
    what: What,

    /// Runs that count.
    #[arg(long, value_name = "N", default_value_t = 5, global = true)]
    rounds: usize,

    /// Print one JSON object instead of the table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Only the machine itself: a matrix product and a copy.
    #[command(after_help = "Example:\n  nnunet-dist bench peak")]
    Peak,
    Step(step::Step),
    Loader(loader::Loader),
    Preprocess(preprocess::Preprocess),
    Resample(resample::Resample),
    Infer(infer::Infer),
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<()> {
        dist::divide_threads(&dist::Single)?;
        let report = match &self.what {
            What::Peak => Report::new("peak", Vec::new()),
            What::Infer(infer) => infer.run(self.rounds)?,
            What::Step(step) => step.run(self.rounds)?,
            What::Preprocess(preprocess) => preprocess.run(self.rounds)?,
            What::Resample(resample) => resample.run(self.rounds)?,
            What::Loader(loader) => loader.run(self.rounds)?,
        };
        if self.json {
            println!("{}", report.json())
        } else {
            print!("{}", report.table())
        }
        Ok(())
    }
}
