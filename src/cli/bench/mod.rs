//! `nnunet-dist bench`

mod all_reduce;
mod checkpoint;
mod conv;
mod infer;
mod loader;
mod memory;
mod network;
mod preprocess;
mod resample;
mod step;

use clap::{Args, Subcommand};

use super::ranks::or_abort;
use crate::bench::Report;
use nnunet_comm::distributed;

/// Measure the speed of one part on this machine, next to the machine's peak.
///
/// Prints items per second, TFLOP/s or GB/s, and the fraction of the peak of a matrix product or a copy, measured in
/// the same run. All data is generated unless an option names a dataset, a work folder or files.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nnunet-dist bench peak")]
pub struct Bench {
    #[command(subcommand)]
    what: What,

    /// Measured repetitions.
    #[arg(long, value_name = "N", default_value_t = 5, global = true)]
    rounds: usize,

    /// Print one JSON object instead of the table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure only the peak of the machine: a matrix product and a copy.
    #[command(after_help = "Example:\n  nnunet-dist bench peak")]
    Peak,
    Step(step::Step),
    Conv(conv::Conv),
    Memory(memory::Memory),
    Loader(loader::Loader),
    Preprocess(preprocess::Preprocess),
    Resample(resample::Resample),
    Infer(infer::Infer),
    #[command(name = "allreduce")]
    AllReduce(all_reduce::AllReduce),
    Checkpoint(checkpoint::Checkpoint),
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let What::AllReduce(all_reduce) = &self.what {
            return self.run_on_ranks(all_reduce);
        }
        distributed::divide_threads(&distributed::Single)?;
        let report = match &self.what {
            What::Peak => Report::new("peak", Vec::new()),
            What::Step(step) => step.run(self.rounds)?,
            What::Conv(conv) => conv.run(self.rounds)?,
            What::Memory(memory) => {
                println!("{}", memory.run(self.json)?);
                return Ok(());
            }
            What::Loader(loader) => loader.run(self.rounds)?,
            What::Preprocess(preprocess) => preprocess.run(self.rounds)?,
            What::Resample(resample) => resample.run(self.rounds)?,
            What::Infer(infer) => infer.run(self.rounds)?,
            What::AllReduce(_) => unreachable!("handled above, on all ranks"),
            What::Checkpoint(checkpoint) => checkpoint.run(self.rounds)?,
        };
        self.print(&report);
        Ok(())
    }

    fn run_on_ranks(&self, all_reduce: &all_reduce::AllReduce) -> anyhow::Result<()> {
        let comm = distributed::init()?;
        distributed::divide_threads(&*comm)?;
        let rows = or_abort(all_reduce.run(self.rounds, &*comm), &*comm)?;
        if comm.rank() == 0 {
            self.print(&Report::new("allreduce", rows));
        }
        Ok(())
    }

    fn print(&self, report: &Report) {
        if self.json { println!("{}", report.json()) } else { print!("{}", report.table()) }
    }
}
