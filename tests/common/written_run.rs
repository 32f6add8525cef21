//! Run directories as a training writes them, without a training.
#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Number of epochs and steps per epoch of these runs.
pub const EPOCHS: usize = 40;
pub const STEPS: usize = 10;

/// Writes `config.toml`, `log.jsonl` with this many epochs, and a `status.json` of this many seconds ago.
pub fn write_run(folder: &Path, epochs: usize, state: &str, seconds_ago: u64) {
    fs::create_dir_all(folder).unwrap();
    let config = format!(
        "configuration = '3d_fullres'\nfold = '0'\n[training]\nepochs = {EPOCHS}\niterations_per_epoch = {STEPS}\n"
    );
    fs::write(folder.join("config.toml"), config).unwrap();
    let log: String = (0..epochs).map(|epoch| record(epoch).to_string() + "\n").collect();
    fs::write(folder.join("log.jsonl"), log).unwrap();
    let status = json!({
        "state": state, "epoch": epochs, "iteration": 4, "step": (epochs * STEPS + 5).min(EPOCHS * STEPS),
        "epochs": EPOCHS, "iterations_per_epoch": STEPS, "world_size": 2, "pid": 1, "updated_unix": now() - seconds_ago,
    });
    fs::write(folder.join("status.json"), status.to_string()).unwrap();
}

/// A line of `log.jsonl`. The moving average is best after epoch 30.
pub fn record(epoch: usize) -> Value {
    let done = epoch as f64 / EPOCHS as f64;
    json!({
        "epoch": epoch, "train_loss": 0.4 - done, "val_loss": 0.5 - done, "pseudo_dice": [0.5 + done / 4.0, null],
        "ema_pseudo_dice": 0.6 - (done - 0.725).abs() / 2.0, "lr": 0.01 * (1.0 - done), "samples_per_s": 8.0, "step_s": 2.0,
        "data_wait_s": 5.0, "comm_s": 1.0, "straggler_s": 0.5, "checkpoint_s": 0.1, "epoch_s": 30.0,
        "gradient_norm": 1.0 + done, "loss_scale": null, "skipped_steps": 0, "world_size": 2,
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
