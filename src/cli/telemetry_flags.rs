//! Command-line flags of monitoring.

use clap::Args;

use nnunet_train::config::Layer;

/// Monitoring of a run beyond the files that it always writes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Monitoring")]
pub struct TelemetryFlags {
    /// Address of the Prometheus metrics endpoint; each process of a host uses the next port. A port without an address
    /// binds to the loopback interface [default: none].
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    metrics_addr: Option<String>,

    /// Also write TensorBoard event files into the folder `tensorboard` of the run directory.
    #[arg(long)]
    tensorboard: bool,
}

impl TelemetryFlags {
    pub(super) fn add_to(&self, layer: &mut Layer) {
        layer
            .set("telemetry.metrics_addr", self.metrics_addr.clone())
            .set("telemetry.tensorboard", self.tensorboard.then_some(true));
    }
}
