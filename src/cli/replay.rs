//! `nnunet-dist replay`

use std::path::PathBuf;

use clap::Args;

use nnunet_nn::Device;
use nnunet_train::{self as train, Replayed};

/// Repeat a training step whose loss was no number, sample by sample, and say where that begins.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, after a run has failed:
  nnunet-dist replay hippocampus/runs/3d_fullres/fold_0/incidents/step_0000000123")]
pub struct Replay {
    /// What the run has left of the step; its error names the folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Where to compute [default: as in the run].
    #[arg(long, value_enum, value_name = "DEVICE")]
    device: Option<Device>,
}

impl Replay {
    pub(super) fn run(self) -> anyhow::Result<()> {
        print!("{}", table(&train::replay(&self.folder, self.device)?));
        Ok(())
    }
}

fn table(Replayed { incident, samples, weights, gradients }: &Replayed) -> String {
    let number = |value: Option<f64>| value.map_or("no number".to_owned(), |value| format!("{value:.4}"));
    let mut text = format!(
        "epoch {}, step {}: loss {}, norm of the gradient {}, learning rate {:.3e}\n",
        incident.epoch + 1,
        incident.iteration + 1,
        number(incident.loss),
        number(incident.gradient_norm),
        incident.lr
    );
    if incident.later_steps > 0 {
        text += &format!("the weights are those after {} more step(s)\n", incident.later_steps);
    }
    let width = samples.iter().map(|sample| sample.sample.case.len()).max().unwrap_or(0).max(4);
    text += &format!(
        "\nrank  {:width$}  {:>22}  {:>11}  {:>10}  labels\n",
        "case", "intensities", "no numbers", "loss alone"
    );
    for sample in samples {
        let [low, high] = sample.range;
        let labels: Vec<String> = sample.labels.iter().map(i16::to_string).collect();
        text += &format!(
            "{:>4}  {:width$}  {:>22}  {:>11}  {:>10}  {}{}\n",
            sample.rank,
            sample.sample.case,
            format!("{low:.3} to {high:.3}"),
            sample.not_finite,
            number(Some(sample.loss).filter(|loss| loss.is_finite())),
            labels.join(" "),
            if sample.is_culprit() { "   <-" } else { "" }
        );
    }
    for (what, names) in [("weights", weights), ("gradients", gradients)] {
        text += &match names.split_first() {
            None => format!("\nall {what} are numbers"),
            Some((first, others)) => format!("\n{what} that are no numbers: {first} and {} more", others.len()),
        };
    }
    text + "\n"
}
