//! `nnunet-dist replay`

use std::path::PathBuf;

use clap::Args;

use super::output::out;
use nnunet_nn::Device;
use nnunet_train::{self as train, Replayed};

/// Repeat a training step with a NaN or infinite loss sample by sample and locate the first non-finite value.
#[derive(Debug, Args)]
#[command(after_help = "\
Example, after a run has failed:
  nnunet-dist replay hippocampus/runs/3d_fullres/fold_0/nan_dumps/step_0000000123")]
pub struct Replay {
    /// Dump of the step, in the folder named by the run's error message.
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Compute device [default: as in the run].
    #[arg(long, value_enum, value_name = "DEVICE")]
    device: Option<Device>,
}

impl Replay {
    pub(super) fn run(self) -> anyhow::Result<()> {
        out!("{}", table(&train::replay(&self.folder, self.device)?));
        Ok(())
    }
}

fn table(Replayed { dump, samples, weights, gradients }: &Replayed) -> String {
    let number = |value: Option<f64>| value.map_or("not finite".to_owned(), |value| format!("{value:.4}"));
    let mut text = format!(
        "epoch {}, step {}: loss {}, gradient norm {}, learning rate {:.3e}\n",
        dump.epoch + 1,
        dump.iteration + 1,
        number(dump.loss),
        number(dump.gradient_norm),
        dump.lr
    );
    if dump.later_steps > 0 {
        text += &format!("the weights were saved {} step(s) later\n", dump.later_steps);
    }
    let width = samples.iter().map(|sample| sample.sample.case.len()).max().unwrap_or(0).max(4);
    text +=
        &format!("\nrank  {:width$}  {:>22}  {:>11}  {:>10}  labels\n", "case", "intensities", "non-finite", "loss");
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
            None => format!("\nall {what} are finite"),
            Some((first, others)) => format!("\nnon-finite {what}: {first} and {} more", others.len()),
        };
    }
    text + "\n"
}
