//! `nnunet-dist bench conv`

use clap::Args;

use super::network::NetworkFlags;
use crate::bench::{Peak, Report, StepBench};
use nnunet_comm::distributed::Single;
use nnunet_nn::Device;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};

/// Measure each convolution layer of the network and each of its passes separately.
///
/// On a GPU the kernels come from the autotuning table: cuDNN's or, with --burn, the faster of cuDNN's and Burn's. The
/// choice of --burn is recorded for all later runs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nnunet-dist bench conv --patch 64,64,64 --batch-size 2
  nnunet-dist bench conv -w hippocampus -c 3d_fullres --device cuda --amp --burn")]
pub(super) struct Conv {
    #[command(flatten)]
    network: NetworkFlags,

    /// Measure Burn's kernels, too.
    #[arg(long)]
    burn: bool,
}

impl Conv {
    pub(super) fn run(&self, rounds: usize) -> anyhow::Result<Report> {
        let (bench, device) = (self.network.bench()?, self.network.device);
        let precision = bench.precision;
        Ok(on_device(device, precision, &Single, Measure { bench, rounds, burn: self.burn, device })?)
    }
}

struct Measure {
    bench: StepBench,
    rounds: usize,
    burn: bool,
    device: Device,
}

impl OnDevice for Measure {
    type Output = Report;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Report {
        let timings = self.bench.convolutions::<B::InnerBackend>(&device, self.rounds, self.burn);
        #[cfg(feature = "cuda")]
        timings.iter().for_each(|timing| timing.note(0));
        let rows = timings.into_iter().flat_map(|timing| [Some(timing.ours), timing.burns]).flatten().collect();
        match self.device {
            Device::Cpu => Report::new("conv", rows),
            Device::Cuda => Report::beside("conv", rows, Peak::of_gpu::<B::InnerBackend>(&device)),
        }
    }
}
