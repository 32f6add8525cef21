//! Candidates for comparison: the collected results of a configuration, or an ensemble of two.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nnunet_core::fsio;
use nnunet_eval::{Classes, Measures, Summary, evaluate_files};
use nnunet_infer::ensemble::{Members, merge_cases};
use rayon::prelude::*;

use super::held_out::{folds_text, recreate_dir};
use super::{CrossvalError, HeldOutResults};

/// Copies the label maps of all held-out cases of a configuration to `folder`, with `dataset.json` and `plans.json`,
/// and writes their `summary.json`.
///
/// # Errors
/// Returns an error if a fold has not been validated, a case is in two folds, or a file cannot be read or written.
pub fn accumulate(held_out: &HeldOutResults, configuration: &str, folder: &Path) -> Result<Summary, CrossvalError> {
    let files = held_out.files(configuration, &held_out.dataset.file_ending)?;
    let copied: Vec<_> = files
        .par_iter()
        .map(|(_, from)| {
            let to = folder.join(from.file_name().unwrap_or_default());
            fsio::copy(from, &to).map_err(CrossvalError::io(&to))
        })
        .collect();
    copied.into_iter().collect::<Result<(), _>>()?;
    held_out.copy_description(folder)?;
    let classes = Classes::from_dataset(&held_out.dataset);
    let summary = evaluate_files(&held_out.pairs(folder)?, &classes, &Measures::default())?;
    summary.save(&folder.join("summary.json"))?;
    Ok(summary)
}

/// Maximum number of cases an error lists.
const LISTED: usize = 10;

/// A configuration or an ensemble, with its held-out predictions in a folder.
pub(super) struct Candidate {
    pub name: String,
    pub members: Vec<String>,
    pub folder: PathBuf,
    pub summary: Summary,
}

/// Name of a configuration or of an ensemble in files.
pub(super) fn name_of(members: &[&str], folds: &str) -> String {
    match members {
        [single] => (*single).to_owned(),
        members => format!("ensemble___{}___{folds}", members.join("___")),
    }
}

impl Candidate {
    /// Candidate from the label maps of a configuration's folds.
    pub fn single(held_out: &HeldOutResults, configuration: &str) -> Result<Self, CrossvalError> {
        let folder = held_out.prepare_folder(configuration, None)?;
        let summary = accumulate(held_out, configuration, &folder)?;
        let name = configuration.to_owned();
        Ok(Self { members: vec![name.clone()], name, folder, summary })
    }

    /// Candidate from the averaged probabilities of two configurations.
    pub fn pair(held_out: &HeldOutResults, members: [&str; 2]) -> Result<Self, CrossvalError> {
        let mut first = probabilities(held_out, members[0])?;
        let mut second = probabilities(held_out, members[1])?;
        for (one, other, [has, lacks]) in [(&first, &second, members), (&second, &first, [members[1], members[0]])] {
            let missing = one.keys().filter(|case| !other.contains_key(*case));
            if let Some(missing) = listed(missing) {
                let defect = format!("has no prediction of {missing}, which {has} has");
                return Err(CrossvalError::invalid(&held_out.work.runs(lacks), defect));
            }
        }
        let cases: Vec<String> = first.keys().cloned().collect();
        let members_of = |case: String| {
            let probabilities = [&mut first, &mut second].into_iter().filter_map(|files| files.remove(&case));
            Members { probabilities: probabilities.collect(), case }
        };
        let cases: Vec<Members> = cases.into_iter().map(members_of).collect();

        let name = name_of(&members, &folds_text(&held_out.folds));
        let folder = held_out.work.ensemble(&name);
        recreate_dir(&folder)?;
        merge_cases(&cases, &folder, &held_out.dataset, false)?;
        held_out.copy_description(&folder)?;
        let classes = Classes::from_dataset(&held_out.dataset);
        let summary = evaluate_files(&held_out.pairs(&folder)?, &classes, &Measures::default())?;
        summary.save(&folder.join("summary.json"))?;
        Ok(Self { name, members: members.map(str::to_owned).to_vec(), folder, summary })
    }

    /// Mean Dice, nnU-Net's `foreground_mean`. If a class occurs in no case, the mean is over the other classes, where
    /// nnU-Net's is NaN.
    pub fn dice(&self) -> f64 {
        self.summary.mean_dice()
    }
}

/// Probability files of a configuration by case; all validated cases must have one.
fn probabilities(held_out: &HeldOutResults, configuration: &str) -> Result<BTreeMap<String, PathBuf>, CrossvalError> {
    let files = held_out.files(configuration, ".npz")?;
    let validated = held_out.files(configuration, &held_out.dataset.file_ending)?;
    let Some(missing) = listed(validated.keys().filter(|case| !files.contains_key(*case))) else { return Ok(files) };
    let defect = format!(
        "has no probabilities of {missing}; run `nnunet-dist train -w {} -c {configuration} -f FOLD --val --npz`, \
         or pass --no-ensembling",
        held_out.work.root().display()
    );
    Err(CrossvalError::invalid(&held_out.work.runs(configuration), defect))
}

/// Comma-separated list of the first names; `None` if there are none.
fn listed<'a>(names: impl Iterator<Item = &'a String>) -> Option<String> {
    let names: Vec<&str> = names.map(String::as_str).collect();
    let more = if names.len() > LISTED { ", …" } else { "" };
    (!names.is_empty()).then(|| names[..names.len().min(LISTED)].join(", ") + more)
}
