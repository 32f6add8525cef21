//! Record of a preprocessing: settings and raw files, by which a training notices that they have changed since.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::dataset::{CaseFiles, DatasetJson};
use crate::plan::{PlanError, Plans};
use crate::store::StoreError;
use nnunet_core::fsio;

/// Name of the file in the folder of a store. It has no ending, since `CASE.json` describes a case.
pub const MANIFEST: &str = "manifest";

/// Keys of a configuration that change preprocessed cases.
const CONFIGURATION_KEYS: [&str; 7] = [
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
];
/// Keys of plans that change preprocessed cases.
const PLANS_KEYS: [&str; 2] = ["transpose_forward", "foreground_intensity_properties_per_channel"];
/// Keys of `dataset.json` that change preprocessed cases.
const DATASET_KEYS: [&str; 3] = ["channel_names", "labels", "regions_class_order"];

/// Record of a preprocessing, written when all cases are complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Settings by name: keys of the plans, the configuration and `dataset.json`.
    settings: Map<String, Value>,
    /// Raw files of each case.
    cases: BTreeMap<String, Vec<RawFile>>,
}

/// A raw file as it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RawFile {
    /// Path relative to the dataset, or absolute for a file outside of it.
    path: PathBuf,
    bytes: u64,
    /// Modification time in nanoseconds since 1970. A file with the same size and time counts as unchanged.
    modified_ns: u64,
    sha256: String,
}

impl RawFile {
    /// Describes the images and the label map of a case.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read.
    pub fn of_case(files: &CaseFiles, dataset: &Path) -> io::Result<Vec<Self>> {
        files.images.iter().chain(&files.label).map(|path| Self::read(path, dataset)).collect()
    }

    fn read(path: &Path, dataset: &Path) -> io::Result<Self> {
        let (bytes, modified_ns) = stamp(path)?;
        let relative = match path.strip_prefix(dataset) {
            Ok(relative) => relative.to_owned(),
            Err(_) => path.canonicalize()?,
        };
        Ok(Self { path: relative, bytes, modified_ns, sha256: digest(path)? })
    }

    /// Returns whether the file still has its contents; a missing file counts as unchanged, since training only needs
    /// the preprocessed case.
    fn is_unchanged(&self, dataset: &Path) -> bool {
        let path = dataset.join(&self.path);
        match stamp(&path) {
            Ok(stamp) if stamp == (self.bytes, self.modified_ns) => true,
            Ok((bytes, _)) => bytes == self.bytes && digest(&path).is_ok_and(|sum| sum == self.sha256),
            Err(_) => true,
        }
    }
}

/// Returns size and modification time.
fn stamp(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), modified.as_nanos() as u64))
}

fn digest(path: &Path) -> io::Result<String> {
    let (mut file, mut sum) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => sum.update(&buffer[..length]),
        }
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Manifest {
    /// Creates the record of a preprocessing.
    ///
    /// # Errors
    /// Returns an error if the plans have no such configuration.
    pub fn new(
        plans: &Plans,
        configuration: &str,
        dataset: &DatasetJson,
        cases: BTreeMap<String, Vec<RawFile>>,
    ) -> Result<Self, PlanError> {
        Ok(Self { settings: settings(plans, configuration, dataset)?, cases })
    }

    /// Writes the record into the folder of a store.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), StoreError> {
        let path = folder.join(MANIFEST);
        fsio::write_json(&path, self).map_err(|error| StoreError { path, defect: format!("cannot write: {error}") })
    }

    /// Reads the record of a store; `None` if it has none, because it was imported or made by an earlier version.
    ///
    /// # Errors
    /// Returns an error if the file is damaged.
    pub fn load(folder: &Path) -> Result<Option<Self>, StoreError> {
        let path = folder.join(MANIFEST);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                let parsed = read.map_err(|error| error.to_string());
                let parsed = parsed.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
                parsed.map(Some).map_err(|defect| StoreError { path, defect: defect + "; preprocess again" })
            }
        }
    }

    /// Compares the record with the plans, the description and the raw files of the dataset in the folder `raw` as they
    /// are now, and with the cases in the store.
    ///
    /// # Errors
    /// Returns an error that names everything that has changed.
    pub fn check(
        &self,
        folder: &Path,
        plans: &Plans,
        configuration: &str,
        dataset: &DatasetJson,
        raw: Option<&Path>,
        stored: &[String],
    ) -> Result<(), StoreError> {
        let fail = |defect: String| Err(StoreError { path: folder.to_owned(), defect: defect + "; preprocess again" });
        let now = settings(plans, configuration, dataset);
        let now = now.map_err(|error| StoreError { path: folder.to_owned(), defect: error.to_string() })?;
        let changed: Vec<&str> =
            now.iter().filter(|(key, value)| self.settings.get(*key) != Some(value)).map(|(key, _)| &**key).collect();
        if !changed.is_empty() {
            return fail(format!("was preprocessed with other settings: {}", changed.join(", ")));
        }
        if let Some(case) = self.cases.keys().find(|case| !stored.contains(case)) {
            return fail(format!("case {case} is missing, of {} preprocessed cases", self.cases.len()));
        }
        if let Some(case) = stored.iter().find(|case| !self.cases.contains_key(*case)) {
            return fail(format!("case {case} was not preprocessed with the others"));
        }
        let Some(raw) = raw else { return Ok(()) };
        let files: Vec<&RawFile> = self.cases.values().flatten().collect();
        let changed: Vec<&&RawFile> = files.par_iter().filter(|file| !file.is_unchanged(raw)).collect();
        match changed.as_slice() {
            [] => Ok(()),
            [first, rest @ ..] => {
                let others = if rest.is_empty() { String::new() } else { format!(" and {} other files", rest.len()) };
                fail(format!("{}{others} changed after preprocessing", raw.join(&first.path).display()))
            }
        }
    }
}

/// Returns the settings that change preprocessed cases.
fn settings(plans: &Plans, configuration: &str, dataset: &DatasetJson) -> Result<Map<String, Value>, PlanError> {
    let object = |value: serde_json::Result<Value>| match value {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    };
    let sources = [
        (object(serde_json::to_value(plans.configuration(configuration)?)), &CONFIGURATION_KEYS[..]),
        (object(serde_json::to_value(plans)), &PLANS_KEYS),
        (object(serde_json::to_value(dataset)), &DATASET_KEYS),
    ];
    let pairs = sources.into_iter().flat_map(|(mut object, keys)| {
        keys.iter().filter_map(move |key| Some(((*key).to_owned(), object.remove(*key)?))).collect::<Vec<_>>()
    });
    Ok(pairs.collect())
}
