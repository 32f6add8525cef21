//! Configuration, environment, dumps of NaN steps and checkpoints of a run.

use std::fs;
use std::path::{Path, PathBuf};

use maud::{Markup, html};

use super::elements::{cell, definitions, folded, scrolling, table};
use super::format::{NONE, bytes, number, percent, score, time};
use super::{ReportError, RunFiles, RunStatus};
use nnunet_nn::checkpoint::CheckpointInfo;
use nnunet_train::{NanDump, list_nan_dumps};

/// Collapsible `config.toml`.
pub fn configuration(run: &RunFiles) -> Markup {
    let path = run.dir.config();
    match fs::read_to_string(&path) {
        Ok(toml) => folded("config.toml, all settings", html! { pre { (toml) } }),
        Err(_) => html! { p { "There is no config.toml." } },
    }
}

/// Program version, hardware and settings of the training.
pub fn environment(run: &RunFiles, status: &RunStatus) -> Markup {
    let mut pairs: Vec<(&str, Markup)> = Vec::new();
    let mut add = |name, value: Option<String>| pairs.extend(value.map(|value| (name, cell(value))));
    let path = |path: &Path| fs::canonicalize(path).unwrap_or(path.to_owned()).display().to_string();
    let newest = run.checkpoints.iter().rev().find_map(|listed| listed.contents.as_ref());
    let config = run.config.as_ref();
    add("program", newest.map(|contents| contents.program.clone()));
    add("processes", status.world_size.map(|size| size.to_string()));
    add("device", config.map(|config| toml_word(&config.device)));
    add("precision", config.map(|config| toml_word(&config.precision)));
    let batch = config.map(|config| config.training.batch_size * config.training.gradient_accumulation_steps);
    let global = batch.zip(status.world_size).map(|(batch, size)| format!(", {} in all", batch * size));
    add("batch per process", batch.map(|batch| format!("{batch}{}", global.unwrap_or_default())));
    add("steps per epoch", run.steps_per_epoch().map(|steps| steps.to_string()));
    add("plans", config.map(|config| config.plans.clone()));
    add("seed", config.map(|config| config.seed.to_string()));
    add("run directory", Some(path(run.dir.root())));
    add("work folder", run.work.as_ref().map(|work| path(work.root())));
    definitions("facts", pairs)
}

/// Steps with a NaN or infinite loss or gradient.
///
/// # Errors
/// Returns an error if a record is damaged.
pub fn nan_dump_list(run: &RunFiles, status: &RunStatus) -> Result<Markup, ReportError> {
    let kept = list_nan_dumps(&run.dir).map_err(|error| ReportError::new(&run.dir.nan_dumps(), error))?;
    if kept.is_empty() {
        let line = match status.skipped_steps {
            0 => "None: loss and gradient were finite in all steps.".to_owned(),
            steps => {
                format!("{steps} step(s) skipped because a gradient was not finite; no dumps were kept.")
            }
        };
        return Ok(html! { p { (line) } });
    }
    let row = |(folder, dump): &(PathBuf, NanDump)| {
        let value = |value: Option<f64>| value.map_or("not finite".to_owned(), number);
        let cells = [
            format!("epoch {}, step {}", dump.epoch + 1, dump.iteration + 1),
            value(dump.loss),
            value(dump.gradient_norm),
            dump.cases.join(", "),
        ];
        let replay = html! { code { "nnunet-dist replay " (folder.display()) } };
        cells.into_iter().map(cell).chain([replay]).collect()
    };
    let heads = ["step", "loss", "gradient norm", "cases of the batch", "replay with"];
    Ok(scrolling("Incidents", table(&heads, kept.iter().map(row))))
}

/// Existing checkpoints, newest first.
pub fn checkpoints(run: &RunFiles) -> Markup {
    if run.checkpoints.is_empty() {
        return html! { p { "No checkpoint has been written yet." } };
    }
    let row = |listed: &CheckpointInfo| {
        let training = listed.contents.as_ref().and_then(|contents| contents.training.as_ref());
        let progress = training.map(|training| &training.progress);
        let step = progress
            .zip(run.steps_per_epoch())
            .map(|(progress, per_epoch)| progress.steps(per_epoch as u64).to_string());
        let epochs = progress.map(|progress| progress.next_epoch.to_string());
        let marks: Vec<&str> = [("latest", listed.is_latest), ("best", listed.is_best)]
            .into_iter()
            .filter(|mark| mark.1)
            .map(|mark| mark.0)
            .collect();
        let cells = [
            listed.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            marks.join(", "),
            step.unwrap_or(NONE.to_owned()),
            epochs.unwrap_or(NONE.to_owned()),
            score(progress.and_then(|progress| progress.ema_pseudo_dice)),
            bytes(listed.bytes),
            listed.written.map_or(NONE.to_owned(), time),
        ];
        cells.into_iter().map(cell).collect()
    };
    let heads = ["checkpoint", "marked", "steps", "epochs", "EMA of the pseudo Dice", "size", "written"];
    scrolling("Checkpoints", table(&heads, run.checkpoints.iter().rev().map(row)))
}

/// Warnings about a run, shown at the top of the page.
pub fn warnings(run: &RunFiles, status: &RunStatus) -> Vec<String> {
    let mut warnings = Vec::new();
    if status.is_silent {
        warnings.push(format!(
            "The run should be active but shows {}; it may have died. Continue with --resume.",
            status.state_text()
        ));
    }
    if status.skipped_steps > 0 {
        warnings.push(format!("{} step(s) were skipped without an update; see the NaN steps.", status.skipped_steps));
    }
    if let Some(wait) = status.data_wait.filter(|wait| *wait > 0.2) {
        warnings.push(format!("In the last epoch, {} of the step time was waiting for data.", percent(wait)));
    }
    if let Some(comm) = status.communication.filter(|comm| *comm > 0.3) {
        warnings
            .push(format!("In the last epoch, {} of the step time was waiting for other processes.", percent(comm)));
    }
    let never = status.validated.iter().flat_map(|validated| &validated.dice).filter(|(_, dice)| **dice == 0.0);
    warnings.extend(never.map(|(name, _)| format!("{name} has a mean Dice of 0 in the held-out cases.")));
    if run.checkpoints.is_empty() && status.epochs_done > 0 {
        warnings.push("There is no checkpoint.".to_owned());
    }
    warnings
}

/// Spelling in TOML.
fn toml_word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or(NONE.to_owned())
}
