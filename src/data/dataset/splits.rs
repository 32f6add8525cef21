//! Cross-validation splits in the format of nnU-Net's `splits_final.json`.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::DatasetError;
use super::numpy::RandomState;
use nnunet_core::{fsio, user_file};

/// Number of folds and shuffle seed of nnU-Net (`crossval_split.py`).
const FOLDS: usize = 5;
const SEED: u32 = 12345;

/// Training and validation cases of each fold: `splits_final.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Splits(Vec<Fold>);

/// A fold. Cases in neither list are not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Training cases.
    pub train: Vec<String>,
    /// Validation cases.
    pub val: Vec<String>,
}

impl Splits {
    /// Creates nnU-Net's five folds: those of scikit-learn's `KFold(n_splits=5, shuffle=True, random_state=12345)` over
    /// the sorted cases.
    ///
    /// nnU-Net fails with fewer than five cases. Here, fewer cases give one fold each (leave-one-out); a single case
    /// cannot be split and gives no folds, so that only `all` can be trained.
    ///
    /// # Errors
    /// Returns an error if there are no cases or a case name occurs twice.
    pub fn generate(cases: &[String]) -> Result<Self, DatasetError> {
        let mut cases = cases.to_vec();
        cases.sort_unstable();
        if let Some(pair) = cases.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(DatasetError::Splits(format!("there are two cases named {}", pair[0])));
        }
        let folds = match cases.len() {
            0 => return Err(DatasetError::Splits("there are no cases to split".to_owned())),
            1 => 0,
            count => count.min(FOLDS),
        };
        Ok(Self(k_fold(cases.len(), folds).iter().map(|in_val| Fold::new(&cases, in_val)).collect()))
    }

    /// Reads a `splits_final.json`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or has another schema, or if a fold has no training cases or
    /// contains a case twice.
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        let splits: Self = user_file::read_json(path).map_err(DatasetError::user_file(path))?;
        for (number, fold) in splits.0.iter().enumerate() {
            fold.check().map_err(|defect| DatasetError::invalid(path, format_args!("fold {number} {defect}")))?;
        }
        Ok(splits)
    }

    /// Writes a `splits_final.json`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DatasetError> {
        fsio::write_json(path, self).map_err(DatasetError::io(path))
    }

    /// Returns all folds; the first is fold 0.
    pub fn folds(&self) -> &[Fold] {
        &self.0
    }

    /// Returns the training cases and the validation cases of fold `number`.
    ///
    /// # Errors
    /// Returns an error if there is no such fold.
    pub fn fold(&self, number: usize) -> Result<(&[String], &[String]), DatasetError> {
        match self.0.get(number) {
            Some(fold) => Ok((&fold.train, &fold.val)),
            None if self.0.is_empty() => {
                Err(DatasetError::Splits("there are no folds, as a single case cannot be split; use `all`".to_owned()))
            }
            None => Err(DatasetError::Splits(format!("there is no fold {number}; use 0 to {}", self.0.len() - 1))),
        }
    }

    /// Returns the cases that are in no fold, in the order of `cases`.
    pub fn unused<'c>(&self, cases: &'c [String]) -> Vec<&'c str> {
        let used: HashSet<&String> = self.0.iter().flat_map(|fold| fold.train.iter().chain(&fold.val)).collect();
        cases.iter().filter(|case| !used.contains(case)).map(String::as_str).collect()
    }

    /// Checks that all cases of the folds are in `cases`.
    ///
    /// # Errors
    /// Returns an error if a fold contains a case that is not in `cases`.
    pub fn check_cases(&self, cases: &[String]) -> Result<(), DatasetError> {
        let known: HashSet<&String> = cases.iter().collect();
        for (number, fold) in self.0.iter().enumerate() {
            if let Some(case) = fold.train.iter().chain(&fold.val).find(|case| !known.contains(case)) {
                return Err(DatasetError::Splits(format!(
                    "fold {number} contains {case}, which is not in the dataset"
                )));
            }
        }
        Ok(())
    }
}

impl Fold {
    /// Creates a fold; `in_val` is true for validation cases.
    fn new(cases: &[String], in_val: &[bool]) -> Self {
        let of = |wanted: bool| {
            cases.iter().zip(in_val).filter(move |&(_, &val)| val == wanted).map(|(case, _)| case.clone())
        };
        Self { train: of(false).collect(), val: of(true).collect() }
    }

    fn check(&self) -> Result<(), String> {
        if self.train.is_empty() {
            return Err("has no training cases".to_owned());
        }
        self.train.iter().chain(&self.val).try_for_each(|case| fsio::check_name_part(case))?;
        let mut seen = HashSet::new();
        match self.train.iter().chain(&self.val).find(|case| !seen.insert(*case)) {
            Some(case) => Err(format!("contains {case} twice; a case must be either a training or a validation case")),
            None => Ok(()),
        }
    }
}

/// Returns, per fold, whether each of `count` items is in its test part: consecutive runs of the shuffled items, the
/// first runs longer by one if `count` is not a multiple of `folds`.
fn k_fold(count: usize, folds: usize) -> Vec<Vec<bool>> {
    let mut shuffled: Vec<usize> = (0..count).collect();
    RandomState::new(SEED).shuffle(&mut shuffled);
    let mut rest = shuffled.as_slice();
    let mut next = |fold| {
        let (test, later) = rest.split_at(count / folds + usize::from(fold < count % folds));
        rest = later;
        let mut in_test = vec![false; count];
        test.iter().for_each(|&item| in_test[item] = true);
        in_test
    };
    (0..folds).map(&mut next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(count: usize) -> Vec<String> {
        (0..count).rev().map(|number| format!("case_{number:03}")).collect()
    }

    #[test]
    fn few_cases_give_few_folds() {
        let splits = Splits::generate(&cases(3)).unwrap();
        assert_eq!(splits.folds().len(), 3);
        let mut validated: Vec<_> = splits.folds().iter().flat_map(|fold| fold.val.clone()).collect();
        validated.sort();
        assert_eq!(validated, ["case_000", "case_001", "case_002"]);

        let single = Splits::generate(&cases(1)).unwrap();
        assert!(single.fold(0).unwrap_err().to_string().contains("use `all`"));
        assert!(Splits::generate(&[]).is_err());
        assert!(Splits::generate(&["a".into(), "a".into()]).is_err());
    }

    #[test]
    fn a_saved_file_survives_a_round_trip() {
        let path = tempfile::tempdir().unwrap().path().join("splits_final.json");
        let splits = Splits::generate(&cases(7)).unwrap();
        splits.save(&path).unwrap();
        assert_eq!(Splits::load(&path).unwrap(), splits);
        splits.check_cases(&cases(8)).unwrap();
        assert_eq!((splits.unused(&cases(8)), splits.unused(&cases(7)).len()), (vec!["case_007"], 0));
        assert!(splits.check_cases(&cases(6)).unwrap_err().to_string().contains("case_006"));
        let error = splits.fold(5).unwrap_err().to_string();
        assert_eq!(error, "splits: there is no fold 5; use 0 to 4");
    }

    #[test]
    fn rejects_invalid_splits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("splits_final.json");
        for (text, defect) in [
            (r#"[{"train": ["a", "b"], "val": ["b"]}]"#, "fold 0 contains b twice"),
            (r#"[{"train": ["a"], "val": []}, {"train": [], "val": ["a"]}]"#, "fold 1 has no training cases"),
            (r#"[{"train": ["a"]}]"#, "missing field `val`"),
            (r#"{"train": ["a"]}"#, "splits_final.json: invalid type"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Splits::load(&path).unwrap_err().to_string();
            assert!(error.contains(defect), "{text}: {error}");
        }
    }
}
