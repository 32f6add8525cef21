//! Read the log of a training run and print loss and pseudo Dice per epoch.
//!
//! `cargo run --example read_run_log -- hippocampus/runs/3d_fullres/fold_0`
//!
//! Each line of `log.jsonl` is a JSON object; `docs/reference/metrics.md` describes its keys. Without an argument, the
//! example reads a small run that is part of the repository.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use nnunet_dist::telemetry::read_log;

fn main() -> Result<(), Box<dyn Error>> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run_0_1/run");
    let run = std::env::args_os().nth(1).map_or_else(default, PathBuf::from);
    print!("{}", table(&run)?);
    Ok(())
}

/// A table with a row per epoch; the pseudo Dice is the mean over the classes that occurred.
pub fn table(run: &Path) -> Result<String, Box<dyn Error>> {
    let mut table =
        format!("{:>5} {:>10} {:>10} {:>11} {:>8}\n", "epoch", "train loss", "val loss", "pseudo Dice", "EMA");
    for epoch in read_log(&run.join("log.jsonl"))? {
        let found: Vec<f64> = epoch.pseudo_dice.iter().flatten().copied().collect();
        let mean = (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64);
        let [val_loss, mean, ema] = [epoch.val_loss, mean, epoch.ema_pseudo_dice].map(or_dash);
        writeln!(table, "{:>5} {:>10.4} {val_loss:>10} {mean:>11} {ema:>8}", epoch.epoch, epoch.train_loss)?;
    }
    Ok(table)
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.4}"))
}
