//! Selection of the configuration or ensemble with the highest Dice.

use super::candidate::Candidate;
use super::information::{Best, Information, Model};
use super::{CrossvalError, HeldOutResults, instructions};
use nnunet_core::fsio;
use nnunet_data::plan::Plans;
use nnunet_data::work::WorkDir;
use nnunet_eval::json_to_file;
use nnunet_eval::postprocess::{DetermineOptions, Determined, determine};

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

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;

    use super::*;
    use nnunet_eval::{CaseResult, Metrics, Summary};

    #[test]
    fn of_equals_the_first_is_the_best() {
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
