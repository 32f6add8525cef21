//! The store's own folder of NumPy files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use ndarray::{ArrayView3, ArrayView4};
use rayon::prelude::*;

use super::npy::{self, MappedArray};
use super::{CaseInfo, CaseProperties, CaseStore, Patch, PreprocessedCase, Region, StoreError};
use nnunet_core::fsio;

const DATA: &str = ".npy";
const LABELS: &str = "_seg.npy";
const PROPERTIES: &str = ".json";

/// A folder with three files per case, all of which NumPy or any editor can open:
///
/// - `<id>.npy`: intensities, f32, `(channel, z, y, x)`;
/// - `<id>_seg.npy`: labels, i16, `(1, z, y, x)` as in nnU-Net's own preprocessed folders;
/// - `<id>.json`: [`CaseProperties`]. It is written last: a case without it is not whole and not listed.
///
/// The arrays stay mapped into memory while the store is open, so what is read often is read from the page cache.
pub struct NativeStore {
    ids: Vec<String>,
    cases: HashMap<String, StoredCase>,
    folder: PathBuf,
}

struct StoredCase {
    info: CaseInfo,
    data: MappedArray<f32>,
    labels: MappedArray<i16>,
    /// Of the cascade's previous stage.
    previous: Option<MappedArray<i16>>,
}

impl NativeStore {
    /// Opens a folder and checks every case's files against each other and their lengths; no voxel is read.
    ///
    /// # Errors
    /// The folder cannot be read or holds no case, or a file of a case is missing, cut short or contradicts another.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let mut ids = if folder.exists() { list_ids(folder)? } else { Vec::new() };
        if ids.is_empty() {
            return Err(StoreError::new(folder, "holds no preprocessed case; preprocess the dataset first"));
        }
        ids.sort_unstable();
        let cases = ids
            .par_iter()
            .map(|id| Ok((id.clone(), StoredCase::open(folder, id)?)))
            .collect::<Result<HashMap<_, _>, StoreError>>()?;
        Ok(Self { ids, cases, folder: folder.to_path_buf() })
    }

    /// The same with segmentations of the cascade's previous stage, by case: files that [`write_label_map`] has written.
    /// They are mapped into memory as the other arrays are.
    ///
    /// # Errors
    /// A file is missing, cut short or of another extent than its case, or its case is not in the store.
    pub fn with_previous_stage(mut self, label_maps: &BTreeMap<String, PathBuf>) -> Result<Self, StoreError> {
        for (id, path) in label_maps {
            let [z, y, x] = self.case(id)?.info.shape;
            let labels = MappedArray::<i16>::open(path)?;
            if labels.shape() != [1, z, y, x] {
                let defect = format!("has the shape {:?}, the preprocessed case {:?}", labels.shape(), [1, z, y, x]);
                return Err(StoreError::new(
                    path,
                    defect + "; let the previous stage predict its held-out cases again",
                ));
            }
            if let Some(case) = self.cases.get_mut(id) {
                case.previous = Some(labels);
                case.info.has_previous = true;
            }
        }
        Ok(self)
    }

    fn case(&self, id: &str) -> Result<&StoredCase, StoreError> {
        self.cases
            .get(id)
            .ok_or_else(|| StoreError::new(&self.folder, format!("holds no case {id}; preprocess the dataset again")))
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
    /// If the patch's arrays are not in C order, or its data and labels differ in extent.
    fn read_patch(&self, case: &str, lo: [isize; 3], patch: &mut Patch) -> Result<(), StoreError> {
        let stored = self.case(case)?;
        let channels = stored.info.channels;
        let (patch_channels, z, y, x) = patch.data.dim();
        assert_eq!(patch.labels.dim(), (z, y, x), "data and labels of a patch have one extent");
        if patch_channels != channels {
            let path = file(&self.folder, case, DATA);
            return Err(StoreError::new(path, format!("has {channels} channels, the patch {patch_channels}")));
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
        visit(self.case(case)?.region(lo, size));
        Ok(())
    }
}

impl StoredCase {
    fn open(folder: &Path, id: &str) -> Result<Self, StoreError> {
        let properties_path = file(folder, id, PROPERTIES);
        let properties = read_properties(&properties_path)?;
        let data_path = file(folder, id, DATA);
        let labels_path = file(folder, id, LABELS);
        let data = MappedArray::<f32>::open(&data_path)?;
        let labels = MappedArray::<i16>::open(&labels_path)?;

        let [channels, z, y, x] = data.shape();
        let stated = properties.shape_after_resampling;
        if data.as_slice().is_empty() || [z, y, x] != stated {
            let defect =
                format!("has the shape {:?} where {} says {stated:?}", data.shape(), properties_path.display());
            return Err(StoreError::new(data_path, defect + "; preprocess again"));
        }
        if labels.shape() != [1, z, y, x] {
            let defect = format!("has the shape {:?}, the data {:?}; preprocess again", labels.shape(), data.shape());
            return Err(StoreError::new(labels_path, defect));
        }
        check_locations(&properties).map_err(|defect| StoreError::new(properties_path, defect))?;
        let class_locations = properties.class_locations;
        let info = CaseInfo { channels, shape: stated, class_locations, has_previous: false };
        Ok(Self { info, data, labels, previous: None })
    }

    fn region(&self, lo: [isize; 3], size: [usize; 3]) -> Region<'_> {
        let previous = self.previous.as_ref().map(MappedArray::as_slice);
        let (data, labels, shape) = (self.data.as_slice(), self.labels.as_slice(), self.info.shape);
        Region { data, labels, previous, shape, lo, size }
    }
}

/// Writes a case into a store's folder, replacing an older one; a reader sees it only once it is whole.
///
/// It does not wait for the disk, which takes longer than to preprocess a small case. What a loss of power leaves of the
/// last cases [`NativeStore::open`] refuses: their files are shorter than their headers say.
///
/// # Errors
/// The disk, or a case that cannot be stored: one without labels, or whose name ends in `_seg`.
pub fn write_case(folder: &Path, id: &str, case: &PreprocessedCase) -> Result<(), StoreError> {
    let properties_path = file(folder, id, PROPERTIES);
    if id.ends_with("_seg") {
        let defect = "a case's name must not end in _seg, which marks label files; rename it";
        return Err(StoreError::new(properties_path, defect));
    }
    let Some(labels) = &case.labels else {
        return Err(StoreError::new(properties_path, "the case has no labels; only training cases can be stored"));
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

/// Writes a label map `(z, y, x)` in the form of the store's own: NumPy, i16, `(1, z, y, x)`.
///
/// # Errors
/// The disk.
pub fn write_label_map(path: &Path, labels: ArrayView3<i16>) -> Result<(), StoreError> {
    npy::write(path, labels.insert_axis(ndarray::Axis(0)))
}

/// The file with a case's own labels, which has the form of [`write_label_map`]'s.
pub fn label_map(folder: &Path, id: &str) -> PathBuf {
    file(folder, id, LABELS)
}

/// Reads the properties of a case in a store's folder.
pub fn read_case_properties(folder: &Path, id: &str) -> Result<CaseProperties, StoreError> {
    read_properties(&file(folder, id, PROPERTIES))
}

/// Removes every case from a store's folder, whole ones and what an interrupted run left; other files stay.
pub fn clear(folder: &Path) -> Result<(), StoreError> {
    let names = match list_files(folder) {
        Err(_) if !folder.exists() => return Ok(()),
        names => names?,
    };
    let (properties, arrays): (Vec<_>, Vec<_>) = names
        .into_iter()
        .filter(|name| name.starts_with(".partial-") || name.ends_with(DATA) || name.ends_with(PROPERTIES))
        .partition(|name| name.ends_with(PROPERTIES));
    // The json files first: no case is ever listed whose arrays are gone.
    properties.iter().chain(&arrays).try_for_each(|name| remove(&folder.join(name)))
}

/// The files of a case.
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
        .map_err(|error| StoreError::new(path, format!("is not the properties of a case: {error}; preprocess again")))
}

fn check_locations(properties: &CaseProperties) -> Result<(), String> {
    let shape = properties.shape_after_resampling;
    let beyond = |location: &&[u32; 3]| (0..3).any(|axis| location[axis] as usize >= shape[axis]);
    match properties.class_locations.iter().find_map(|(class, list)| Some((class, list.iter().find(beyond)?))) {
        Some((class, location)) => Err(format!("class {class} lies at {location:?}, outside the shape {shape:?}")),
        None => Ok(()),
    }
}
