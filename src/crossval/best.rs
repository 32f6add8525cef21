//! Selection of the configuration or ensemble with the highest Dice, and the commands that predict with it.

use std::path::PathBuf;

use indexmap::IndexMap;
use nnunet_core::fsio;
use nnunet_data::plan::Plans;
use nnunet_data::work::WorkDir;
use nnunet_eval::json_to_file;
use nnunet_eval::postprocess::{DetermineOptions, Determined, determine};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::candidate::{Candidate, name_of};
use super::held_out::folds_text;
use super::{CrossvalError, HeldOutResults};

/// nnU-Net's configurations, in the order of comparison.
const CONFIGURATIONS: [&str; 4] = ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"];

/// Options of [`find_best`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BestOptions {
    /// Configurations to compare; by default those of nnU-Net's four that the plans have.
    pub configurations: Vec<String>,
    /// Folds to use; by default all.
    pub folds: Vec<usize>,
    /// Do not compare ensembles; no probabilities are needed then.
    pub without_ensembles: bool,
}

/// Compares the configurations of a work folder, and the ensembles of every two of them, by the mean Dice of their
/// held-out cases. Determines the postprocessing of the best and writes `inference_information.json` and
/// `inference_instructions.txt` to the work folder. Ties are resolved in favor of the first; single configurations come
/// before ensembles.
///
/// # Errors
/// Returns an error if a fold has not been trained or has no probabilities, or if a file cannot be read or written.
pub fn find_best(work: &WorkDir, options: &BestOptions) -> Result<(Information, Determined), CrossvalError> {
    let held_out = HeldOutResults::open(work, &options.folds)?;
    let plans = Plans::load(&work.plans())?;
    let configurations = trained(work, &plans, &options.configurations)?;
    let mut candidates = Vec::new();
    for configuration in &configurations {
        candidates.push(Candidate::single(&held_out, configuration)?);
    }
    if !options.without_ensembles {
        for (number, first) in configurations.iter().enumerate() {
            for second in &configurations[number + 1..] {
                candidates.push(Candidate::pair(&held_out, [first, second])?);
            }
        }
    }
    let best = best_of(&candidates).ok_or_else(|| {
        CrossvalError::invalid(
            work.root(),
            "no held-out case contains a class of the dataset; there is nothing to compare",
        )
    })?;
    let pairs = held_out.pairs(&best.folder)?;
    let determined = determine(&best.folder, &pairs, &held_out.dataset, DetermineOptions::default())?;
    let model = |configuration: &String| Model {
        configuration: configuration.clone(),
        plans_identifier: plans.plans_name.clone(),
    };
    let information = Information {
        folds: held_out.folds.clone(),
        dataset_name_or_id: plans.dataset_name.clone(),
        considered_models: configurations.iter().map(model).collect(),
        ensembling_allowed: !options.without_ensembles,
        all_results: candidates.iter().map(|candidate| (candidate.name.clone(), candidate.dice())).collect(),
        best_model_or_ensemble: Best {
            result_on_crossval_pre_pp: best.dice(),
            result_on_crossval_post_pp: determined.after.mean_dice(),
            postprocessing_file: best.folder.join("postprocessing.json"),
            some_plans_file: best.folder.join("plans.json"),
            selected_model_or_models: best.members.iter().map(model).collect(),
        },
    };
    json_to_file(&work.inference_information(), &information)?;
    let path = work.inference_instructions();
    let text = instructions(&information, work)?;
    fsio::write_bytes(&path, text.as_bytes()).map_err(CrossvalError::io(&path))?;
    Ok((information, determined))
}

/// The first candidate with the highest Dice; NaN is excluded.
fn best_of(candidates: &[Candidate]) -> Option<&Candidate> {
    let comparable = candidates.iter().filter(|candidate| !candidate.dice().is_nan());
    comparable.reduce(|best, other| if other.dice() > best.dice() { other } else { best })
}

/// The configurations to compare, all of which must have been trained.
fn trained(work: &WorkDir, plans: &Plans, named: &[String]) -> Result<Vec<String>, CrossvalError> {
    let configurations: Vec<String> = match named {
        [] => CONFIGURATIONS
            .iter()
            .map(ToString::to_string)
            .filter(|name| plans.configurations.contains_key(name))
            .collect(),
        named => named.to_vec(),
    };
    for (number, configuration) in configurations.iter().enumerate() {
        plans.configuration(configuration)?;
        if configurations[..number].contains(configuration) {
            return Err(CrossvalError::invalid(&work.plans(), format_args!("{configuration} is given twice")));
        }
        let runs = work.runs(configuration);
        if !runs.is_dir() {
            let defect = format!("{configuration} has not been trained; train it, or select configurations with -c");
            return Err(CrossvalError::invalid(&runs, defect));
        }
    }
    if configurations.is_empty() {
        return Err(CrossvalError::invalid(&work.plans(), "has none of nnU-Net's configurations; select some with -c"));
    }
    Ok(configurations)
}

/// Contents of `inference_information.json`: same as nnU-Net's, without the trainer name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Information {
    pub folds: Vec<usize>,
    pub dataset_name_or_id: String,
    pub considered_models: Vec<Model>,
    pub ensembling_allowed: bool,
    /// Mean Dice over the held-out cases by configuration or ensemble.
    pub all_results: IndexMap<String, f64>,
    pub best_model_or_ensemble: Best,
}

/// A trained configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub configuration: String,
    pub plans_identifier: String,
}

/// The selected configuration or ensemble.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub result_on_crossval_pre_pp: f64,
    pub result_on_crossval_post_pp: f64,
    pub postprocessing_file: PathBuf,
    pub some_plans_file: PathBuf,
    /// One configuration, or the members of an ensemble.
    pub selected_model_or_models: Vec<Model>,
}

impl Information {
    /// All results in aligned columns, the best marked.
    pub fn table(&self) -> String {
        let models = &self.best_model_or_ensemble.selected_model_or_models;
        let members: Vec<&str> = models.iter().map(|model| model.configuration.as_str()).collect();
        let best = name_of(&members, &folds_text(&self.folds));
        let width = self.all_results.keys().map(|name| name.chars().count()).max().unwrap_or(0);
        let line = |(name, dice): (&String, &f64)| {
            let mark = if *name == best { "  best" } else { "" };
            format!("{name:<width$}  {dice:.4}{mark}\n")
        };
        self.all_results.iter().map(line).collect()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use indexmap::IndexMap;
    use nnunet_eval::{CaseResult, Metrics, Summary};

    #[test]
    fn first_of_equal_candidates_is_the_best() {
        let candidate = |name: &str, dice: f64| {
            let metrics = IndexMap::from([("1".to_owned(), Metrics { dice, ..Metrics::from_counts(1, 1, 1, 1) })]);
            let case = CaseResult { metrics, prediction_file: "p".into(), reference_file: "r".into() };
            Candidate { name: name.into(), members: vec![], folder: "f".into(), summary: Summary::new(vec![case]) }
        };
        let candidates =
            [("a", f64::NAN), ("b", 0.5), ("c", 0.7), ("d", 0.7)].map(|(name, dice)| candidate(name, dice));
        assert_eq!(best_of(&candidates).unwrap().name, "c");
        assert!(best_of(&candidates[..1]).is_none());
    }
}
