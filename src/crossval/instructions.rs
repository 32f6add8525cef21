//! Commands that predict new images with the best configuration.

use serde_json::Value;

use super::{CrossvalError, Information};
use nnunet_data::plan::Plans;
use nnunet_data::work::WorkDir;

/// One command per line with placeholders in capitals, and a heading line before each step.
///
/// # Errors
/// Returns an error if the plans cannot be read or lack the configuration.
pub fn instructions(information: &Information, work: &WorkDir) -> Result<String, CrossvalError> {
    let plans = Plans::load(&work.plans())?;
    let best = &information.best_model_or_ensemble;
    let models = &best.selected_model_or_models;
    let is_ensemble = models.len() > 1;
    let mut lines = vec!["Predict:".to_owned()];
    let mut outputs = Vec::new();
    for (number, model) in (1..).zip(models) {
        let output = if is_ensemble { format!("OUTPUT_FOLDER_MODEL_{number}") } else { "OUTPUT_FOLDER".to_owned() };
        let previous = plans.configuration(&model.configuration)?.previous_stage;
        let mut command = predict(information, work, &model.configuration, &output);
        if let Some(previous) = previous.as_ref().and_then(Value::as_str) {
            lines.push(predict(information, work, previous, &format!("{output}_PREVIOUS_STAGE")));
            command += &format!(" --prev-stage-predictions {output}_PREVIOUS_STAGE");
        }
        if is_ensemble {
            command += " --save-probabilities";
        }
        lines.push(command);
        outputs.push(output);
    }
    if is_ensemble {
        lines.extend(["".to_owned(), "Average the members' probabilities:".to_owned()]);
        let dataset = quoted(&work.dataset_json().display().to_string());
        let inputs = outputs.join(" ");
        lines.push(format!("nnunet-dist ensemble -i {inputs} -o OUTPUT_FOLDER --dataset-json {dataset}"));
    }
    lines.extend(["".to_owned(), "Postprocess:".to_owned()]);
    let file = quoted(&best.postprocessing_file.display().to_string());
    lines.push(format!("nnunet-dist postprocess -i OUTPUT_FOLDER -o OUTPUT_FOLDER_PP --pp {file}"));
    Ok(lines.join("\n") + "\n")
}

fn predict(information: &Information, work: &WorkDir, configuration: &str, output: &str) -> String {
    let runs = quoted(&work.runs(configuration).display().to_string());
    let folds: Vec<String> = information.folds.iter().map(usize::to_string).collect();
    format!("nnunet-dist predict -r {runs} -f {} -i INPUT_FOLDER -o {output}", folds.join(" "))
}

/// Quotes a text as one shell word.
fn quoted(text: &str) -> String {
    let is_plain = |character: char| character.is_alphanumeric() || "/._-+=:@%".contains(character);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
