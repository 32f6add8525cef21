//! How a training can be watched, on the command line.

use clap::Args;

use nnunet_train::config::Layer;

/// What watches a run, beside the files that it always writes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub struct TelemetryFlags {
    /// Where Prometheus can ask for metrics; each process of a host has the next port. A port alone is of the loopback
    /// interface [default: none].
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    metrics_addr: Option<String>,

    /// Write event files for TensorBoard into the run directory's `tensorboard` folder.
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
