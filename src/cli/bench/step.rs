//! `nnunet-dist bench step`

use clap::Args;

use crate::backend::Cpu;
use crate::bench::{Report, StepBench};
use crate::ops::Precision;

/// The training step: forward, loss, backward, clipping, update, on one generated batch.
///
/// The network is nnU-Net's plain U-Net with two 3x3x3 convolutions per stage; without options, the one that nnU-Net plans
/// for MSD's hippocampus.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench step
  nnunet-dist bench step --patch 64,64,64 --channels 4 --features 32,64,128,256,320,320 --batch-size 2 --profile")]
pub(super) struct Step {
    /// Extents of the patch, z,y,x; two numbers for a 2D network.
    #[arg(long, value_name = "N,N,N", value_delimiter = ',', num_args = 2..=3, default_value = "40,56,40")]
    patch: Vec<usize>,

    /// Samples of a batch.
    #[arg(long, value_name = "N", default_value_t = 9)]
    batch_size: usize,

    /// Input channels.
    #[arg(long, value_name = "N", default_value_t = 1)]
    channels: usize,

    /// Classes, background included.
    #[arg(long, value_name = "N", default_value_t = 3)]
    classes: usize,

    /// Feature maps of each stage.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "32,64,128,256")]
    features: Vec<usize>,

    /// Number format of activations.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "fp32")]
    precision: Precision,

    /// Say of each operation how long it takes.
    #[arg(long)]
    profile: bool,
}

impl Step {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let patch = match *self.patch {
            [y, x] => [1, y, x],
            [z, y, x] => [z, y, x],
            _ => anyhow::bail!("--patch takes two or three numbers"),
        };
        let bench = StepBench {
            patch,
            batch_size: self.batch_size,
            channels: self.channels,
            classes: self.classes,
            features: self.features.clone(),
            precision: self.precision,
        };
        let device = Default::default();
        let mut rows = vec![bench.run::<Cpu>(device, rounds)?];
        if self.profile {
            rows.extend(bench.profile::<Cpu>(device)?);
        }
        Ok(Report::new("step", rows))
    }
}
