//! Results of the comparison.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::candidate::name_of;
use super::held_out::folds_text;

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
