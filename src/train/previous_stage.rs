//! Lookup of the first stage's segmentations for the second stage of a cascade.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::TrainError;
use crate::config::RunConfig;
use nnunet_data::dataset::Splits;
use nnunet_data::work::{FoldId, RunDir, WorkDir};

/// Finds the first stage's segmentation of each case, with the voxels of the second stage's preprocessed case.
///
/// A training run writes them when it predicts its held-out cases. Searches all runs of the first stage in the work
/// folder, or those named by [`DataConfig::previous_stage`](crate::config::DataConfig), in that order. In the work
/// folder, folds come first: they have held the case out, while `all` has trained on it and would make the first stage
/// look better than it is.
///
/// # Errors
/// Returns an error that names the cases without a prediction, and the commands that create them.
pub fn find_previous_stage(
    work: &WorkDir,
    config: &RunConfig,
    stage: &str,
    cases: &[String],
) -> Result<BTreeMap<String, PathBuf>, TrainError> {
    let runs = match config.data.previous_stage.as_slice() {
        [] => work.begun_runs(stage),
        named => named.iter().map(RunDir::new).collect(),
    };
    let folders: Vec<_> = runs.iter().map(|run| run.predicted_next_stage(&config.configuration)).collect();
    let find = |case: &str| {
        let mut files = folders.iter().map(|folder| folder.join(format!("{case}.npy")));
        files.find(|file| file.is_file())
    };
    let (mut found, mut missing) = (BTreeMap::new(), BTreeSet::new());
    for case in cases {
        match find(case) {
            Some(file) => drop(found.insert(case.clone(), file)),
            None => drop(missing.insert(case.clone())),
        }
    }
    match missing.is_empty() {
        true => Ok(found),
        false => {
            let commands = commands(work, stage, &missing);
            let (stage, missing) = (stage.to_owned(), missing.into_iter().collect());
            Err(TrainError::PreviousStage { stage, missing, found: found.len(), commands })
        }
    }
}

/// Returns the commands that train the folds in which these cases are held out; started folds are resumed.
fn commands(work: &WorkDir, stage: &str, missing: &BTreeSet<String>) -> Vec<String> {
    let splits = Splits::load(&work.splits()).ok();
    let folds = splits.iter().flat_map(|splits| splits.folds().iter().enumerate());
    let mut left = missing.clone();
    let mut needed = Vec::new();
    for (number, fold) in folds {
        let before = left.len();
        left.retain(|case| !fold.val.contains(case));
        if left.len() < before {
            needed.push(FoldId::Number(number));
        }
    }
    // Some cases are not held out in any fold.
    if !left.is_empty() {
        needed.push(FoldId::All);
    }
    let command =
        |fold: FoldId| format!("nnunet-dist train -w {} -c {stage} -f {fold} --resume=auto", work.root().display());
    needed.into_iter().map(command).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layer;

    /// Creates a work folder with three folds of one case each, and a configuration of the second stage.
    fn work() -> (tempfile::TempDir, WorkDir, RunConfig) {
        let folder = tempfile::tempdir().unwrap();
        let work = WorkDir::new(folder.path());
        let cases = ["a", "b", "c"].map(str::to_owned);
        Splits::generate(&cases).unwrap().save(&work.splits()).unwrap();
        let mut flags = Layer::new("flags");
        flags.set("configuration", Some("3d_cascade_fullres"));
        let config = RunConfig::resolve(Layer::new("plans"), None, flags).unwrap();
        (folder, work, config)
    }

    fn leave(run: &RunDir, case: &str) -> PathBuf {
        let file = run.predicted_next_stage("3d_cascade_fullres").join(format!("{case}.npy"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        file
    }

    #[test]
    fn folds_come_before_all_and_named_runs_instead_of_both() {
        let (_folder, work, mut config) = work();
        let of_all = ["a", "b"].map(|case| leave(&work.run("3d_lowres", FoldId::All), case));
        let of_fold = leave(&work.run("3d_lowres", FoldId::Number(10)), "a");
        let cases = ["a", "b"].map(str::to_owned);
        let found = find_previous_stage(&work, &config, "3d_lowres", &cases).unwrap();
        assert_eq!(found.into_values().collect::<Vec<_>>(), [of_fold, of_all[1].clone()]);

        config.data.previous_stage = vec![work.run("3d_lowres", FoldId::All).root().to_owned()];
        let found = find_previous_stage(&work, &config, "3d_lowres", &cases).unwrap();
        assert_eq!(found.into_values().collect::<Vec<_>>(), of_all);
    }

    #[test]
    fn what_is_missing_is_named_with_the_folds_that_make_it() {
        let (_folder, work, config) = work();
        let splits = Splits::load(&work.splits()).unwrap();
        leave(&work.run("3d_lowres", FoldId::Number(1)), &splits.folds()[1].val[0]);
        let cases: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let error = find_previous_stage(&work, &config, "3d_lowres", &cases).unwrap_err().to_string();
        let [first, last] = [0, 2].map(|fold| &splits.folds()[fold].val[0]);
        assert!(error.contains(&format!("{}, {}", first.min(last), first.max(last))), "{error}");
        assert!(error.contains("-c 3d_lowres -f 0") && error.contains("-f 2") && !error.contains("-f 1"), "{error}");
        assert!(!error.contains('\n') && !error.contains("-f all"), "{error}");

        let unknown = ["z".to_owned()];
        let error = find_previous_stage(&work, &config, "3d_lowres", &unknown).unwrap_err().to_string();
        assert!(error.contains("-f all"), "{error}");
    }
}
