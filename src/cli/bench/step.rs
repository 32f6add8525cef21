//! `nnunet-dist bench step`

use clap::Args;

use super::network::NetworkFlags;
use crate::bench::{Peak, Report, StepBench};
use nnunet_comm::distributed::Single;
use nnunet_nn::Device;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};

/// Measure a training step on one generated batch: forward, loss, backward, clipping, update.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench step
  nnunet-dist bench step --patch 64,64,64 --channels 4 --features 32,64,128,256,320,320 --batch-size 2 --profile
  nnunet-dist bench step -w hippocampus -c 3d_fullres --device cuda --amp")]
pub(super) struct Step {
    #[command(flatten)]
    network: NetworkFlags,

    /// Also measure each operation.
    #[arg(long)]
    profile: bool,
}

impl Step {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let (bench, device) = (self.network.bench()?, self.network.device);
        let precision = bench.precision;
        on_device(device, precision, &Single, Measure { bench, rounds, profile: self.profile, device })?
    }
}

struct Measure {
    bench: StepBench,
    rounds: usize,
    profile: bool,
    device: Device,
}

impl OnDevice for Measure {
    type Output = anyhow::Result<Report>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        let mut rows = self.bench.run::<B>(device.clone(), self.rounds)?;
        if self.profile {
            rows.extend(self.bench.profile::<B>(device.clone())?);
        }
        Ok(match self.device {
            Device::Cpu => Report::new("step", rows),
            Device::Cuda => Report::beside("step", rows, Peak::of_gpu::<B::InnerBackend>(&device)),
        })
    }
}
