//! `nnunet-dist bench`

mod communication;
mod data;
mod infer;
mod network;

use clap::{Args, Subcommand};

use super::output::{out, outln};
use super::ranks::abort_on_error;
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
    what: Benchmark,

    /// Measured repetitions.
    #[arg(long, value_name = "N", default_value_t = 5, global = true)]
    rounds: usize,

    /// Print one JSON object instead of the table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Measure only the peak of the machine: a matrix product and a copy.
    #[command(after_help = "Example:\n  nnunet-dist bench peak")]
    Peak,
    Step(network::Step),
    Conv(network::Conv),
    Memory(network::Memory),
    Loader(data::Loader),
    Preprocess(data::Preprocess),
    Resample(data::Resample),
    Infer(infer::Infer),
    #[command(name = "allreduce")]
    AllReduce(communication::AllReduce),
    Checkpoint(communication::Checkpoint),
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let Benchmark::AllReduce(all_reduce) = &self.what {
            return self.run_on_ranks(all_reduce);
        }
        distributed::divide_threads(&distributed::Single)?;
        let report = match &self.what {
            Benchmark::Peak => Report::new("peak", Vec::new()),
            Benchmark::Step(step) => step.run(self.rounds)?,
            Benchmark::Conv(conv) => conv.run(self.rounds)?,
            Benchmark::Memory(memory) => {
                outln!("{}", memory.run(self.json)?);
                return Ok(());
            }
            Benchmark::Loader(loader) => loader.run(self.rounds)?,
            Benchmark::Preprocess(preprocess) => preprocess.run(self.rounds)?,
            Benchmark::Resample(resample) => resample.run(self.rounds)?,
            Benchmark::Infer(infer) => infer.run(self.rounds)?,
            Benchmark::AllReduce(_) => unreachable!("handled above, on all ranks"),
            Benchmark::Checkpoint(checkpoint) => checkpoint.run(self.rounds)?,
        };
        self.print(&report);
        Ok(())
    }

    fn run_on_ranks(&self, all_reduce: &communication::AllReduce) -> anyhow::Result<()> {
        let comm = distributed::init()?;
        distributed::divide_threads(&*comm)?;
        let rows = abort_on_error(all_reduce.run(self.rounds, &*comm), &*comm)?;
        if comm.rank() == 0 {
            self.print(&Report::new("allreduce", rows));
        }
        Ok(())
    }

    fn print(&self, report: &Report) {
        if self.json { outln!("{}", report.json()) } else { out!("{}", report.table()) }
    }
}
