//! The configuration or ensemble with the highest Dice.

use std::collections::BTreeMap;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::held_out::renew;
use super::{CrossvalError, HeldOut, accumulate, instructions};
use crate::config::WorkDir;
use crate::ensemble::{Members, merge_cases};
use crate::eval::{Classes, Measures, Summary, evaluate_files, json_to_file};
use crate::fsio;
use crate::plan::Plans;
use crate::postprocess::{DetermineOptions, Determined, determine};

/// nnU-Net's configurations, in the order in which they are compared.
const CONFIGURATIONS: [&str; 4] = ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"];

/// What is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BestOptions {
    /// By default nnU-Net's four, as far as the plans have them.
    pub configurations: Vec<String>,
    /// By default all.
    pub folds: Vec<usize>,
    /// Compare no ensembles, for which no probabilities are needed then.
    pub without_ensembles: bool,
}

/// Contents of `inference_information.json`: nnU-Net's, without the name of a trainer.
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

/// A configuration that was trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub configuration: String,
    pub plans_identifier: String,
}

/// What to predict with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub result_on_crossval_pre_pp: f64,
    pub result_on_crossval_post_pp: f64,
    pub postprocessing_file: PathBuf,
    pub some_plans_file: PathBuf,
    /// One, or the members of an ensemble.
    pub selected_model_or_models: Vec<Model>,
}

/// A configuration or an ensemble, with its held-out cases in a folder.
struct Candidate {
    name: String,
    members: Vec<String>,
    folder: PathBuf,
    summary: Summary,
}

impl Information {
    /// The results of all, best first marked, in aligned columns.
    pub fn table(&self) -> String {
        let best: Vec<&str> =
            self.best_model_or_ensemble.selected_model_or_models.iter().map(|model| model.configuration.as_str()).collect();
        let is_best = |name: &str| name == best.join("") || name.starts_with(&format!("ensemble___{}___", best.join("___")));
        let width = self.all_results.keys().map(|name| name.chars().count()).max().unwrap_or(0);
        let line = |(name, dice): (&String, &f64)| {
            let mark = if is_best(name) { "  best" } else { "" };
            format!("{name:<width$}  {dice:.4}{mark}\n")
        };
        self.all_results.iter().map(line).collect()
    }
}

impl Candidate {
    /// As nnU-Net's `foreground_mean`; over the classes that are there if some class is in no case, where nnU-Net has none.
    fn dice(&self) -> f64 {
        self.summary.mean_dice()
    }
}

/// Compares the configurations of a work folder, and the averages of every two of them, by the mean Dice of their held-out
/// cases, determines the postprocessing of the best, and leaves `inference_information.json` and
/// `inference_instructions.txt` in the work folder. Of equals the first is the best, and single configurations come first.
///
/// # Errors
/// A fold has not been trained or has left no probabilities, or a file cannot be read or written.
pub fn find_best(work: &WorkDir, options: &BestOptions) -> Result<(Information, Determined), CrossvalError> {
    let held_out = HeldOut::open(work, &options.folds)?;
    let plans = Plans::load(&work.plans())?;
    let configurations = trained(work, &plans, &options.configurations)?;
    let mut candidates = Vec::new();
    for configuration in &configurations {
        let folder = held_out.prepare_folder(configuration, None)?;
        let summary = accumulate(&held_out, configuration, &folder)?;
        tracing::info!("{configuration}: mean Dice {:.4}", summary.mean_dice());
        candidates.push(Candidate {
            name: configuration.clone(),
            members: vec![configuration.clone()],
            folder,
            summary,
        });
    }
    if !options.without_ensembles {
        for (number, first) in configurations.iter().enumerate() {
            for second in &configurations[number + 1..] {
                let ensemble = ensemble(&held_out, [first, second])?;
                tracing::info!("{}: mean Dice {:.4}", ensemble.name, ensemble.dice());
                candidates.push(ensemble);
            }
        }
    }
    let best = best_of(&candidates).ok_or_else(|| {
        CrossvalError::invalid(work.root(), "no class of the dataset is in any held-out case: there is nothing to compare")
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

/// The first of those with the highest Dice; NaN is no Dice.
fn best_of(candidates: &[Candidate]) -> Option<&Candidate> {
    let comparable = candidates.iter().filter(|candidate| !candidate.dice().is_nan());
    comparable.reduce(|best, other| if other.dice() > best.dice() { other } else { best })
}

/// The configurations to compare, all of which must have been trained.
fn trained(work: &WorkDir, plans: &Plans, named: &[String]) -> Result<Vec<String>, CrossvalError> {
    let configurations: Vec<String> = match named {
        [] => CONFIGURATIONS.iter().map(ToString::to_string).filter(|name| plans.configurations.contains_key(name)).collect(),
        named => named.to_vec(),
    };
    for (number, configuration) in configurations.iter().enumerate() {
        plans.configuration(configuration)?;
        if configurations[..number].contains(configuration) {
            return Err(CrossvalError::invalid(&work.plans(), format_args!("{configuration} is named twice")));
        }
        let runs = work.runs(configuration);
        if !runs.is_dir() {
            let defect = format!("{configuration} has not been trained; train it, or name those to compare with -c");
            return Err(CrossvalError::invalid(&runs, defect));
        }
    }
    if configurations.is_empty() {
        return Err(CrossvalError::invalid(&work.plans(), "none of nnU-Net's configurations; name some with -c"));
    }
    Ok(configurations)
}

/// The averages of the probabilities of every held-out case.
fn ensemble(held_out: &HeldOut, members: [&String; 2]) -> Result<Candidate, CrossvalError> {
    let name = format!("ensemble___{}___{}___{}", members[0], members[1], held_out.folds_text());
    let folder = held_out.work.ensemble(&name);
    renew(&folder)?;
    let mut first = probabilities(held_out, members[0])?;
    let mut second = probabilities(held_out, members[1])?;
    for (one, other, member) in [(&first, &second, members[1]), (&second, &first, members[0])] {
        let missing: Vec<&str> = one.keys().filter(|case| !other.contains_key(*case)).map(String::as_str).collect();
        if !missing.is_empty() {
            let defect = format!("{member} has no probabilities of {}, which the other has", missing.join(", "));
            return Err(CrossvalError::invalid(&held_out.work.runs(member), defect));
        }
    }
    let cases: Vec<String> = first.keys().cloned().collect();
    let case = |case: String| {
        let probabilities = [&mut first, &mut second].into_iter().filter_map(|files| files.remove(&case)).collect();
        Members { probabilities, case }
    };
    let cases: Vec<Members> = cases.into_iter().map(case).collect();
    merge_cases(&cases, &folder, &held_out.dataset, false)?;
    held_out.describe(&folder)?;
    let classes = Classes::of_dataset(&held_out.dataset);
    let summary = evaluate_files(&held_out.pairs(&folder)?, &classes, &Measures::default())?;
    summary.save(&folder.join("summary.json"))?;
    Ok(Candidate { name, members: members.map(String::clone).to_vec(), folder, summary })
}

/// The files with a configuration's probabilities by case.
fn probabilities(held_out: &HeldOut, configuration: &str) -> Result<BTreeMap<String, PathBuf>, CrossvalError> {
    let files = held_out.files(configuration, ".npz")?;
    if files.is_empty() {
        let defect = format!(
            "the held-out cases have no probabilities; `nnunet-dist train -w {} -c {configuration} -f FOLD --val --npz` \
             writes them, --no-ensembling does without",
            held_out.work.root().display()
        );
        return Err(CrossvalError::invalid(&held_out.work.runs(configuration), defect));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{CaseResult, Metrics};

    #[test]
    fn of_equals_the_first_is_the_best() {
        let candidate = |name: &str, dice: f64| {
            let metrics = IndexMap::from([("1".to_owned(), Metrics { dice, ..Metrics::from_counts(1, 1, 1, 1) })]);
            let case = CaseResult { metrics, prediction_file: "p".into(), reference_file: "r".into() };
            Candidate { name: name.into(), members: vec![], folder: "f".into(), summary: Summary::new(vec![case]) }
        };
        let candidates = [("a", f64::NAN), ("b", 0.5), ("c", 0.7), ("d", 0.7)].map(|(name, dice)| candidate(name, dice));
        assert_eq!(best_of(&candidates).unwrap().name, "c");
        assert!(best_of(&candidates[..1]).is_none());
    }
}
