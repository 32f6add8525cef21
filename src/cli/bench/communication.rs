//! Benchmarks of communication and storage: `nnunet-dist bench allreduce` and `checkpoint`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use nnunet_comm::distributed::Communicator;

use crate::bench::{AllReduceBench, Report, Row, checkpoint, plain_network};

/// Measure the gradient all-reduce in each wire format, next to the MPI library's own all-reduce.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mpirun -np 2 nnunet-dist bench allreduce --mb 22 --bucket-mb 2")]
pub(super) struct AllReduce {
    /// Size of the gradients in MiB of f32; the default is that of nnU-Net's network for MSD Hippocampus.
    #[arg(long, value_name = "MIB", default_value_t = 22.0, value_parser = mebibytes)]
    mb: f64,

    /// Bucket size in MiB of f32.
    #[arg(long, value_name = "MIB", default_value_t = 2.0, value_parser = mebibytes)]
    bucket_mb: f64,
}

impl AllReduce {
    /// Runs the benchmark; collective, so all ranks must call it.
    pub(super) fn run(&self, rounds: usize, comm: &dyn Communicator) -> anyhow::Result<Vec<Row>> {
        let values = |mebibytes: f64| (mebibytes * f64::from(1 << 20) / 4.0).ceil() as usize;
        Ok(AllReduceBench { values: values(self.mb), bucket: values(self.bucket_mb) }.run(rounds, comm)?)
    }
}

fn mebibytes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && number <= 4096.0 => Ok(number),
        _ => Err("must be a number above 0, up to 4096".into()),
    }
}

/// Measure writing and reading a checkpoint (weights and momentum of nnU-Net's plain U-Net).
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nnunet-dist bench checkpoint --dir /scratch --features 32,64,128,256,320,320")]
pub(super) struct Checkpoint {
    /// Folder on the disk to measure [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Feature maps per stage of the network.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "32,64,128,256")]
    features: Vec<usize>,
}

impl Checkpoint {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let network = plain_network([40, 56, 40], 1, 3, &self.features);
        let folder = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::tempdir_in(&folder).with_context(|| format!("{}: not writable", folder.display()))?;
        Ok(Report::new("checkpoint", checkpoint(&network, folder.path(), rounds)?))
    }
}
