//! `nnunet-dist evaluate`

use std::path::PathBuf;

use clap::Args;

use crate::eval;

/// Compare predicted label maps with the true ones: Dice, IoU, TP, FP, FN, TN per case and class.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nnunet-dist evaluate -p predictions -g labels -o summary.json")]
pub struct Evaluate {
    /// Folder of predicted label maps.
    #[arg(short, long, value_name = "DIR")]
    predictions: PathBuf,

    /// Folder of true label maps, under the same file names.
    #[arg(short, long, value_name = "DIR")]
    ground_truth: PathBuf,

    /// Where to write the result in nnU-Net's schema [default: PREDICTIONS/summary.json].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Evaluate {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let summary = eval::evaluate_folder(&self.predictions, &self.ground_truth)?;
        let output = self.output.unwrap_or_else(|| self.predictions.join("summary.json"));
        summary.save(&output)?;
        print!("{}", summary.table());
        println!("mean Dice {:.4}", summary.mean_dice());
        Ok(())
    }
}
