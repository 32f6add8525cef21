//! The native store: a folder of NumPy files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ndarray::{ArrayView3, ArrayView4};
use rayon::prelude::*;

use super::checksums::{CHECKSUMS, checksum, load_checksums};
use super::npy::{self, MappedArray};
use super::{CaseInfo, CaseProperties, CaseStore, Patch, PreprocessedCase, Region, StoreError};
use nnunet_core::fsio;

const DATA: &str = ".npy";
const LABELS: &str = "_seg.npy";
const PROPERTIES: &str = ".json";

/// A folder with three files per case, readable with NumPy or a text editor:
///
/// - `<id>.npy`: intensities, f32, `(channel, z, y, x)`;
/// - `<id>_seg.npy`: labels, i16, `(1, z, y, x)` as in nnU-Net's own preprocessed folders;
/// - `<id>.json`: [`CaseProperties`]. It is written last: a case without it is incomplete and not listed.
///
/// The arrays are memory-mapped while the store is open, so frequently read data comes from the page cache.
pub struct NativeStore {
    ids: Vec<String>,
    cases: HashMap<String, StoredCase>,
    folder: PathBuf,
}

struct StoredCase {
    info: CaseInfo,
    data: MappedArray<f32>,
    labels: MappedArray<i16>,
    /// Segmentation from the previous stage of a cascade.
    previous: Option<MappedArray<i16>>,
    /// Expected checksums of data and labels, if known.
    expected: Option<[u32; 2]>,
    /// Result of the verification at the first read: the ending of a damaged file is an error.
    verified: OnceLock<Result<(), &'static str>>,
}

impl NativeStore {
    /// Opens a folder and checks the files of every case for length and consistency; does not read voxels.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be read or contains no case, or if a file of a case is missing, truncated
    /// or contradicts another file.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let mut ids = if folder.exists() { list_ids(folder)? } else { Vec::new() };
        if ids.is_empty() {
            return Err(StoreError::new(folder, "contains no preprocessed cases; preprocess the dataset first"));
        }
        ids.sort_unstable();
        let checksums = load_checksums(folder)?;
        let cases = ids
            .par_iter()
            .map(|id| Ok((id.clone(), StoredCase::open(folder, id, checksums.get(id).copied())?)))
            .collect::<Result<HashMap<_, _>, StoreError>>()?;
        Ok(Self { ids, cases, folder: folder.to_path_buf() })
    }

    /// Adds the previous stage's segmentations of a cascade, by case: files written by [`write_label_map`]. They are
    /// memory-mapped like the other arrays.
    ///
    /// # Errors
    /// Returns an error if a file is missing, truncated or differs in extent from its case, or its case is not in the
    /// store.
    pub fn with_previous_stage(mut self, label_maps: &BTreeMap<String, PathBuf>) -> Result<Self, StoreError> {
        for (id, path) in label_maps {
            let [z, y, x] = self.case(id)?.info.shape;
            let labels = MappedArray::<i16>::open(path)?;
            if labels.shape() != [1, z, y, x] {
                let defect = format!("has shape {:?}, but its case has {:?}", labels.shape(), [1, z, y, x]);
                return Err(StoreError::new(
                    path,
                    defect + "; rerun the previous stage's predictions of its held-out cases",
                ));
            }
            if let Some(case) = self.cases.get_mut(id) {
                case.previous = Some(labels);
                case.info.has_previous = true;
            }
        }
        Ok(self)
    }

    /// Returns a case whose arrays have the checksums of the preprocessing; compares them at the first call.
    fn verified(&self, id: &str) -> Result<&StoredCase, StoreError> {
        let stored = self.case(id)?;
        match stored.verified.get_or_init(|| stored.verify()) {
            Ok(()) => Ok(stored),
            Err(ending) => {
                let defect = "is damaged: its checksum differs from that of the preprocessing; preprocess again";
                Err(StoreError::new(file(&self.folder, id, ending), defect))
            }
        }
    }

    fn case(&self, id: &str) -> Result<&StoredCase, StoreError> {
        self.cases
            .get(id)
            .ok_or_else(|| StoreError::new(&self.folder, format!("contains no case {id}; preprocess again")))
    }
}

impl CaseStore for NativeStore {
    fn case_ids(&self) -> &[String] {
        &self.ids
    }

    fn info(&self, case: &str) -> Result<&CaseInfo, StoreError> {
        self.case(case).map(|stored| &stored.info)
    }

    /// # Panics
    /// Panics if the patch's arrays are not in C order, or its data and labels differ in extent.
    fn read_patch(&self, case: &str, lo: [isize; 3], patch: &mut Patch) -> Result<(), StoreError> {
        let stored = self.verified(case)?;
        let channels = stored.info.channels;
        let (patch_channels, z, y, x) = patch.data.dim();
        assert_eq!(patch.labels.dim(), (z, y, x), "data and labels of a patch must have the same extent");
        if patch_channels != channels {
            let path = file(&self.folder, case, DATA);
            return Err(StoreError::new(path, format!("has {channels} channels, but the patch has {patch_channels}")));
        }
        stored.region(lo, [z, y, x]).copy_to(patch);
        Ok(())
    }

    fn with_region(
        &self,
        case: &str,
        lo: [isize; 3],
        size: [usize; 3],
        _: &mut Patch,
        visit: &mut dyn FnMut(Region),
    ) -> Result<(), StoreError> {
        visit(self.verified(case)?.region(lo, size));
        Ok(())
    }
}

impl StoredCase {
    fn open(folder: &Path, id: &str, expected: Option<[u32; 2]>) -> Result<Self, StoreError> {
        let properties_path = file(folder, id, PROPERTIES);
        let properties = read_properties(&properties_path)?;
        let data_path = file(folder, id, DATA);
        let labels_path = file(folder, id, LABELS);
        let data = MappedArray::<f32>::open(&data_path)?;
        let labels = MappedArray::<i16>::open(&labels_path)?;

        let [channels, z, y, x] = data.shape();
        let stated = properties.shape_after_resampling;
        if data.as_slice().is_empty() || [z, y, x] != stated {
            let defect = format!("has shape {:?}, but {} states {stated:?}", data.shape(), properties_path.display());
            return Err(StoreError::new(data_path, defect + "; preprocess again"));
        }
        if labels.shape() != [1, z, y, x] {
            let defect = format!("has shape {:?}, the data has {:?}; preprocess again", labels.shape(), data.shape());
            return Err(StoreError::new(labels_path, defect));
        }
        check_locations(&properties).map_err(|defect| StoreError::new(properties_path, defect))?;
        let class_locations = properties.class_locations;
        let info = CaseInfo { channels, shape: stated, class_locations, has_previous: false };
        Ok(Self { info, data, labels, previous: None, expected, verified: OnceLock::new() })
    }

    /// Compares the arrays with the expected checksums.
    ///
    /// # Errors
    /// Returns the ending of a damaged file.
    fn verify(&self) -> Result<(), &'static str> {
        match self.expected {
            Some([data, _]) if checksum(self.data.as_slice()) != data => Err(DATA),
            Some([_, labels]) if checksum(self.labels.as_slice()) != labels => Err(LABELS),
            _ => Ok(()),
        }
    }

    fn region(&self, lo: [isize; 3], size: [usize; 3]) -> Region<'_> {
        let previous = self.previous.as_ref().map(MappedArray::as_slice);
        let (data, labels, shape) = (self.data.as_slice(), self.labels.as_slice(), self.info.shape);
        Region { data, labels, previous, shape, lo, size }
    }
}

/// Writes a case into the folder of a store, replacing an older version; it becomes visible to readers only when
/// complete.
///
/// Does not wait for the data to reach the disk, which takes longer than preprocessing a small case. After a power
/// loss, [`NativeStore::open`] rejects truncated files of the last cases: they are shorter than their headers state.
///
/// # Errors
/// Returns an error if writing fails, if the case has no labels, or if its name ends in `_seg`.
pub fn write_case(folder: &Path, id: &str, case: &PreprocessedCase) -> Result<(), StoreError> {
    let properties_path = file(folder, id, PROPERTIES);
    if id.ends_with("_seg") {
        let defect = "case names must not end in _seg, which marks label files; rename the case";
        return Err(StoreError::new(properties_path, defect));
    }
    let Some(labels) = &case.labels else {
        return Err(StoreError::new(properties_path, "the case has no labels; only labeled cases can be stored"));
    };
    remove(&properties_path)?;
    npy::write(&file(folder, id, DATA), case.data.view())?;
    let labels: ArrayView4<i16> = labels.view().insert_axis(ndarray::Axis(0));
    npy::write(&file(folder, id, LABELS), labels)?;
    fsio::write_unsynced(&properties_path, |file| {
        serde_json::to_writer(&mut *file, &case.properties)?;
        file.write_all(b"\n")
    })
    .map_err(|error| StoreError::new(properties_path, format!("cannot write: {error}")))
}

/// Writes a label map `(z, y, x)` in the format of the store: NumPy, i16, `(1, z, y, x)`.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_label_map(path: &Path, labels: ArrayView3<i16>) -> Result<(), StoreError> {
    npy::write(path, labels.insert_axis(ndarray::Axis(0)))
}

/// Returns the path of a case's labels, in the format of [`write_label_map`].
pub fn label_map(folder: &Path, id: &str) -> PathBuf {
    file(folder, id, LABELS)
}

/// Reads the properties of a case from the folder of a store.
pub fn read_case_properties(folder: &Path, id: &str) -> Result<CaseProperties, StoreError> {
    read_properties(&file(folder, id, PROPERTIES))
}

/// Removes every case from the folder of a store, including incomplete ones, and their manifest; other files
/// stay.
pub fn clear(folder: &Path) -> Result<(), StoreError> {
    let names = match list_files(folder) {
        Err(_) if !folder.exists() => return Ok(()),
        names => names?,
    };
    let (properties, arrays): (Vec<_>, Vec<_>) = names
        .into_iter()
        .filter(|name| is_of_cases(name) || [crate::preprocess::MANIFEST, CHECKSUMS].contains(&name.as_str()))
        .partition(|name| name.ends_with(PROPERTIES));
    // Remove the JSON files first, so that no case is listed without its arrays.
    properties.iter().chain(&arrays).try_for_each(|name| remove(&folder.join(name)))
}

/// Moves the files that are not cases from the folder of a store to another, which replaces it.
pub(crate) fn move_other_files(from: &Path, to: &Path) -> Result<(), StoreError> {
    let names = match list_files(from) {
        Err(_) if !from.exists() => return Ok(()),
        names => names?,
    };
    for name in names.iter().filter(|name| !is_of_cases(name) && !to.join(name).exists()) {
        let path = from.join(name);
        fs::rename(&path, to.join(name)).map_err(|error| StoreError::new(path, format!("cannot move: {error}")))?;
    }
    Ok(())
}

fn is_of_cases(name: &str) -> bool {
    name.starts_with(".partial-") || name.ends_with(DATA) || name.ends_with(PROPERTIES)
}

/// Returns the paths of a case's files.
pub(super) fn files_of(folder: &Path, id: &str) -> [PathBuf; 3] {
    [DATA, LABELS, PROPERTIES].map(|ending| file(folder, id, ending))
}

fn file(folder: &Path, id: &str, ending: &str) -> PathBuf {
    folder.join(format!("{id}{ending}"))
}

fn list_ids(folder: &Path) -> Result<Vec<String>, StoreError> {
    let names = list_files(folder)?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(PROPERTIES)).map(str::to_owned).collect())
}

fn list_files(folder: &Path) -> Result<Vec<String>, StoreError> {
    let fail = |error| StoreError::new(folder, format!("cannot list the folder: {error}"));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        names.extend(entry.map_err(fail)?.file_name().into_string());
    }
    Ok(names)
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::new(path, format!("cannot remove: {error}")))
        }
        _ => Ok(()),
    }
}

fn read_properties(path: &Path) -> Result<CaseProperties, StoreError> {
    let bytes = fs::read(path).map_err(|error| StoreError::new(path, format!("cannot read: {error}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| StoreError::new(path, format!("invalid case properties: {error}; preprocess again")))
}

fn check_locations(properties: &CaseProperties) -> Result<(), String> {
    let shape = properties.shape_after_resampling;
    let beyond = |location: &&[u32; 3]| (0..3).any(|axis| location[axis] as usize >= shape[axis]);
    match properties.class_locations.iter().find_map(|(class, list)| Some((class, list.iter().find(beyond)?))) {
        Some((class, location)) => Err(format!("class {class} has location {location:?} outside the shape {shape:?}")),
        None => Ok(()),
    }
}
