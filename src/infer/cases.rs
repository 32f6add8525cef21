//! Selection of the cases to predict.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use nnunet_core::user_file::decode_text;
use nnunet_data::dataset::{CaseFiles, DatasetError, DatasetJson, case_name, find_images, group_images};

/// Finds the cases that `inputs` name, for a network trained on `dataset`. The images are not read yet.
///
/// A single input may be a folder, see [`find_images`], or a list of cases:
///
/// - `.json`: a list with one list of channel files per case, as in nnU-Net v2's `list_of_lists`, or an object of such
///   lists with the names of the results as keys;
/// - `.txt`: one line per case with its channel files, separated by tabs.
///
/// Paths in a list are relative to its folder. All other inputs are image files, grouped into cases by their names.
///
/// # Errors
/// Returns an error if a folder or a list cannot be read, an image is missing, or two cases have the same name.
pub fn find_cases(inputs: &[PathBuf], dataset: &DatasetJson) -> Result<Vec<CaseFiles>, DatasetError> {
    let (ending, channels) = (&dataset.file_ending, dataset.num_channels());
    match inputs {
        [folder] if folder.is_dir() => find_images(folder, ending, channels),
        [list] if has_extension(list, "json") => {
            parse_json(list, ending).and_then(|cases| resolve_cases(list, cases, channels))
        }
        [list] if has_extension(list, "txt") => {
            parse_text(list, ending).and_then(|cases| resolve_cases(list, cases, channels))
        }
        files => {
            for path in files {
                std::fs::metadata(path).map_err(|source| DatasetError::Io { path: path.clone(), source })?;
            }
            group_images(files, ending, channels)
        }
    }
}

/// One of several equal parts of the cases, for independent jobs that share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobPart {
    /// Index of the part, from 0.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

impl Default for JobPart {
    /// All cases.
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl JobPart {
    /// Creates part `index` of `count`.
    ///
    /// # Errors
    /// Returns an error if `index >= of`.
    pub fn new(index: usize, count: usize) -> Result<Self, String> {
        match index < count {
            true => Ok(Self { index, count }),
            false => Err(format!("part {index} of {count} does not exist: parts count from 0")),
        }
    }

    /// Returns the name of the lock of the output folder, which several parts write at once.
    pub(super) fn lock_name(self) -> String {
        match self.count {
            1 => ".nnunet-dist.lock".to_owned(),
            _ => format!(".nnunet-dist-part-{}-of-{}.lock", self.index, self.count),
        }
    }

    /// Selects the part's cases: every `count`-th one, as for nnU-Net v2's `-num_parts`.
    pub fn select(self, cases: Vec<CaseFiles>) -> Vec<CaseFiles> {
        cases.into_iter().skip(self.index).step_by(self.count).collect()
    }
}

impl FromStr for JobPart {
    type Err = String;

    /// Parses `INDEX/OF`, such as `0/4`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let (index, count) = numbers.ok_or("must be two numbers such as 0/4, the first of four parts")?;
        Self::new(index, count)
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// JSON file with a list of cases.
#[derive(Deserialize)]
#[serde(untagged)]
enum CaseList {
    Unnamed(Vec<Vec<PathBuf>>),
    Named(BTreeMap<String, Vec<PathBuf>>),
}

fn parse_json(list: &Path, ending: &str) -> Result<Vec<CaseFiles>, DatasetError> {
    let text = read(list)?;
    let text = decode_text(&text).map_err(|defect| DatasetError::invalid(list, defect))?;
    let parsed = serde_json::from_str(text).map_err(|_| {
        DatasetError::invalid(list, r#"is not of the form [["a_0000.nii.gz", …], …] or {"a": ["a_0000.nii.gz", …], …}"#)
    })?;
    match parsed {
        CaseList::Unnamed(cases) => cases.into_iter().map(|images| named_after_first(list, images, ending)).collect(),
        CaseList::Named(cases) => {
            Ok(cases.into_iter().map(|(id, images)| CaseFiles { id, images, label: None }).collect())
        }
    }
}

fn parse_text(list: &Path, ending: &str) -> Result<Vec<CaseFiles>, DatasetError> {
    let text = read(list)?;
    let text = decode_text(&text).map_err(|defect| DatasetError::invalid(list, defect))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| named_after_first(list, line.split('\t').map(PathBuf::from).collect(), ending)).collect()
}

fn read(list: &Path) -> Result<Vec<u8>, DatasetError> {
    std::fs::read(list).map_err(|source| DatasetError::Io { path: list.to_owned(), source })
}

fn named_after_first(list: &Path, images: Vec<PathBuf>, ending: &str) -> Result<CaseFiles, DatasetError> {
    let first = images.first().ok_or_else(|| DatasetError::invalid(list, "has a case without images"))?;
    let id = case_name(first, ending).ok_or_else(|| {
        let defect = format_args!("{} is not a *{ending} image, as used in training", first.display());
        DatasetError::invalid(list, defect)
    })?;
    Ok(CaseFiles { id: id.to_owned(), images, label: None })
}

/// Resolves the paths of the listed cases and sorts the cases by name.
fn resolve_cases(list: &Path, mut cases: Vec<CaseFiles>, channels: usize) -> Result<Vec<CaseFiles>, DatasetError> {
    let folder = list.parent().unwrap_or(Path::new(""));
    let mut names = BTreeSet::new();
    for case in &mut cases {
        let fail = |defect: String| Err(DatasetError::invalid(list, format_args!("case {}: {defect}", case.id)));
        if !is_file_name(&case.id) {
            return fail("is not a valid file name".into());
        }
        if !names.insert(case.id.clone()) {
            return fail("is listed twice; use a JSON object with one key per case to give distinct names".into());
        }
        if case.images.len() != 1 && case.images.len() != channels {
            return fail(format!("has {} files, expected {channels}, one per channel", case.images.len()));
        }
        case.images.iter_mut().for_each(|image| *image = folder.join(&*image));
        if let Some(missing) = case.images.iter().find(|image| !image.is_file()) {
            return fail(format!("{} is missing", missing.display()));
        }
    }
    if cases.is_empty() {
        return Err(DatasetError::invalid(list, "lists no cases"));
    }
    cases.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(cases)
}

/// Results must be written to the output folder only.
fn is_file_name(id: &str) -> bool {
    let mut components = Path::new(id).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(name)), None) if name == id)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn dataset(channels: usize) -> DatasetJson {
        let names: BTreeMap<_, _> = (0..channels).map(|channel| (channel.to_string(), "MR")).collect();
        let labels = json!({"background": 0, "organ": 1});
        let fields = json!({"channel_names": names, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"});
        serde_json::from_value(fields).unwrap()
    }

    /// Creates a folder with empty images.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    type Found = Result<Vec<(String, Vec<PathBuf>)>, String>;

    fn find(inputs: &[PathBuf], channels: usize) -> Found {
        let cases = find_cases(inputs, &dataset(channels)).map_err(|error| error.to_string())?;
        Ok(cases.into_iter().map(|case| (case.id, case.images)).collect())
    }

    #[test]
    fn lists_name_cases_by_file_or_by_key() {
        let folder = folder(&["b_0000.nii.gz", "b_0001.nii.gz", "sub/a_0000.nii.gz", "sub/a_0001.nii.gz"]);
        let path = |name: &str| folder.path().join(name);
        let [a, b] = ["sub/a", "b"].map(|case| [0, 1].map(|channel| format!("{case}_000{channel}.nii.gz")));
        let files = |case: &[String; 2]| case.iter().map(|name| path(name)).collect::<Vec<_>>();
        let list = |name: &str, text: String| {
            fs::write(path(name), text).unwrap();
            find(&[path(name)], 2)
        };
        let expected = Ok(vec![("a".to_owned(), files(&a)), ("b".to_owned(), files(&b))]);
        assert_eq!(list("list.json", json!([b, a]).to_string()), expected);
        assert_eq!(list("list.txt", format!("{}\t{}\r\n\n{}\t{}\n", b[0], b[1], a[0], a[1])), expected);
        let named = Ok(vec![("x".to_owned(), files(&b)), ("y".to_owned(), files(&a))]);
        assert_eq!(list("named.json", json!({"y": a, "x": b}).to_string()), named);

        for (text, defect) in [
            (json!({"../x": a}), "../x: is not a valid file name"),
            (json!([a, a]), "case a: is listed twice"),
            (json!([[a[0], a[1], b[0]]]), "case a: has 3 files, expected 2"),
            (json!([["c_0000.nii.gz"]]), "c_0000.nii.gz is missing"),
            (json!([[]]), "a case without images"),
            (json!(["c_0000.nii.gz"]), "is not of the form"),
            (json!([["c.png"]]), "c.png is not a *.nii.gz image"),
            (json!([]), "lists no cases"),
        ] {
            let error = list("bad.json", text.to_string()).unwrap_err();
            assert!(error.contains("bad.json") && error.contains(defect), "{text}: {error}");
        }
    }

    #[test]
    fn files_are_grouped_as_those_of_a_folder() {
        let folder = folder(&["b_0000.nii.gz", "b_0001.nii.gz", "sub/a_0000.nii.gz", "sub/b_0000.nii.gz", "c.nii.gz"]);
        let files = |names: &[&str]| names.iter().map(|name| folder.path().join(name)).collect::<Vec<_>>();
        let b = ["b_0000.nii.gz", "b_0001.nii.gz"];
        assert_eq!(find(&files(&b), 2), Ok(vec![("b".to_owned(), files(&b))]));
        // A single file may contain all channels.
        let lone = files(&["sub/a_0000.nii.gz", "c.nii.gz"]);
        let expected = vec![("a".to_owned(), vec![lone[0].clone()]), ("c".to_owned(), vec![lone[1].clone()])];
        assert_eq!(find(&lone, 2), Ok(expected));
        for (names, defect) in [
            (&["b_0000.nii.gz", "sub/b_0000.nii.gz"][..], "has the same case name b as"),
            (&["nowhere.nii.gz"], "nowhere.nii.gz: No such file"),
            (&["sub", "c.nii.gz"], "sub: is not a *.nii.gz image"),
        ] {
            let error = find(&files(names), 2).unwrap_err();
            assert!(error.contains(defect), "{names:?}: {error}");
        }
    }

    #[test]
    fn parts_are_disjoint_and_complete() {
        let case = |number: usize| CaseFiles { id: number.to_string(), images: Vec::new(), label: None };
        let names =
            |part: JobPart| part.select((0..7).map(case).collect()).into_iter().map(|case| case.id).collect::<Vec<_>>();
        assert_eq!(names("1/3".parse().unwrap()), ["1", "4"]);
        let mut all: Vec<_> = (0..3).flat_map(|index| names(JobPart::new(index, 3).unwrap())).collect();
        all.sort();
        assert_eq!(all, names(JobPart::default()));
        for (bad, defect) in [("3/3", "count from 0"), ("0/0", "count from 0"), ("1", "0/4"), ("a/b", "0/4")] {
            assert!(bad.parse::<JobPart>().unwrap_err().contains(defect), "{bad}");
        }
    }
}
