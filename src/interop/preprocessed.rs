//! Import of nnU-Net's `nnUNet_preprocessed/DatasetXXX_Name` as a work folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use ndarray::{Array3, Array4};
use rayon::prelude::*;
use zip::ZipArchive;

use super::pickle::{Array, Value, parse};
use super::{InteropError, is_file_name};
use nnunet_core::fsio;
use nnunet_data::dataset::{DatasetJson, Splits};
use nnunet_data::plan::{Configuration, Plans};
use nnunet_data::preprocess::{ClassGroups, case_number};
use nnunet_data::store::npy::{NpyElement, byte_length, decode_header};
use nnunet_data::store::{self, CaseProperties, PreprocessedCase};
use nnunet_data::work::{self, WorkDir};
use nnunet_image::Geometry;

/// Size limit for the properties of a case, which consist mostly of sampled voxels of each class.
const MAX_PROPERTIES: u64 = 1 << 30;

/// Preprocessed data to import.
#[derive(Clone, Debug)]
pub struct PreprocessedSource<'a> {
    /// Folder `nnUNet_preprocessed/DatasetXXX_Name`.
    pub folder: &'a Path,
    /// Name of the plans file without its extension, such as `nnUNetPlans`.
    pub plans: &'a str,
    /// Raw dataset; without it, the ground truth in `gt_segmentations` replaces its labels.
    pub raw: Option<&'a Path>,
}

/// Imported cases of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Data identifier, such as `nnUNetPlans_3d_fullres`.
    pub data_identifier: String,
    /// Number of converted cases.
    pub cases: usize,
    /// Number of skipped cases in Blosc2 format (nnU-Net 2.6 and later); `preprocess` can recreate them.
    pub blosc2: usize,
}

/// Creates a work folder with plans, dataset description, fingerprint, splits and the cases that are `.npz` or `.npy`
/// files. `on_case` is called after each converted case.
///
/// # Errors
/// Returns an error if a file is missing or damaged, or if a case cannot be written.
pub fn import_preprocessed(
    source: &PreprocessedSource,
    work: &WorkDir,
    on_case: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Imported>, InteropError> {
    let PreprocessedSource { folder, plans, raw } = *source;
    let plans = Plans::load(&folder.join(format!("{plans}.json")))?;
    let dataset = DatasetJson::load(&folder.join("dataset.json"))?;
    plans.save(&work.plans())?;
    write_json(&work.dataset_json(), &dataset)?;
    let fingerprint = folder.join("dataset_fingerprint.json");
    if fingerprint.exists() {
        copy(&fingerprint, &work.fingerprint())?;
    }
    let splits = folder.join("splits_final.json");
    if splits.exists() {
        Splits::load(&splits)?.save(&work.splits())?;
    }
    let raw = match raw {
        Some(raw) => raw.to_owned(),
        None => labels_only(folder, &dataset, work)?,
    };
    work::Source::new(&raw)?.save(work)?;

    let mut imported: Vec<Imported> = Vec::new();
    for name in plans.configurations.keys() {
        let configuration = plans.configuration(name)?;
        let cases = folder.join(&configuration.data_identifier);
        if cases.is_dir() && !imported.iter().any(|done| done.data_identifier == configuration.data_identifier) {
            let conversion = CaseConverter::new(&plans, configuration, &dataset, &cases)?;
            imported.push(conversion.run(work, on_case)?);
        }
    }
    if !splits.exists() {
        let of = |done: &Imported| store::NativeStore::open(&work.preprocessed(&done.data_identifier));
        if let Some(first) = imported.iter().find(|done| done.cases > 0) {
            Splits::generate(store::CaseStore::case_ids(&of(first)?))?.save(&work.splits())?;
        }
    }
    Ok(imported)
}

/// Creates a raw dataset with only labels, which is sufficient for the evaluation of held-out cases.
fn labels_only(folder: &Path, dataset: &DatasetJson, work: &WorkDir) -> Result<PathBuf, InteropError> {
    let (from, to) = (folder.join("gt_segmentations"), work.root().join("labels_only"));
    let ending = &dataset.file_ending;
    let mut entries = serde_json::Map::new();
    for path in files(&from)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(id) = name.strip_suffix(ending.as_str()) else { continue };
        copy(&path, &to.join("labelsTr").join(&name))?;
        let images = (0..dataset.num_channels()).map(|channel| format!("imagesTr/{id}_{channel:04}{ending}"));
        let images: Vec<String> = images.collect();
        entries.insert(id.to_owned(), serde_json::json!({"images": images, "label": format!("labelsTr/{name}")}));
    }
    let mut listed = dataset.clone();
    listed.other.insert("dataset".to_owned(), entries.into());
    write_json(&to.join("dataset.json"), &listed)?;
    Ok(to)
}

/// Converter of the cases of one data identifier.
struct CaseConverter<'a> {
    folder: &'a Path,
    configuration: Configuration,
    transpose: [usize; 3],
    channels: usize,
    classes: ClassGroups,
}

impl<'a> CaseConverter<'a> {
    fn new(
        plans: &Plans,
        configuration: Configuration,
        dataset: &DatasetJson,
        folder: &'a Path,
    ) -> Result<Self, InteropError> {
        if !is_file_name(&configuration.data_identifier) {
            let defect =
                format!("data_identifier {:?} of the plans is not a folder name", configuration.data_identifier);
            return Err(InteropError::new(folder, defect));
        }
        let transpose = <[usize; 3]>::try_from(plans.transpose_forward.as_slice()).ok();
        let transpose = transpose.filter(|axes| (0..3).all(|axis| axes.contains(&axis)));
        let transpose =
            transpose.ok_or_else(|| InteropError::new(folder, "plans: transpose_forward is not a permutation"))?;
        let classes = ClassGroups::from_dataset(dataset).map_err(|defect| InteropError::new(folder, defect))?;
        Ok(Self { folder, configuration, transpose, channels: dataset.num_channels(), classes })
    }

    fn run(&self, work: &WorkDir, on_case: &(dyn Fn(&str) + Sync)) -> Result<Imported, InteropError> {
        let data_identifier = self.configuration.data_identifier.clone();
        let to = work.preprocessed(&data_identifier);
        store::clear(&to)?;
        let files = files(self.folder)?;
        let ids: Vec<&str> = files
            .iter()
            .filter(|path| path.extension().is_some_and(|ending| ending == "pkl"))
            .filter_map(|path| path.file_stem()?.to_str())
            .collect();
        let (blosc2, ids): (Vec<&str>, Vec<&str>) = ids.into_iter().partition(|id| self.file(id, ".b2nd").exists());
        ids.par_iter().try_for_each(|id| {
            store::write_case(&to, id, &self.case(id)?)?;
            on_case(id);
            Ok::<_, InteropError>(())
        })?;
        Ok(Imported { data_identifier, cases: ids.len(), blosc2: blosc2.len() })
    }

    fn file(&self, id: &str, ending: &str) -> PathBuf {
        self.folder.join(format!("{id}{ending}"))
    }

    fn case(&self, id: &str) -> Result<PreprocessedCase, InteropError> {
        let (data, labels) = self.arrays(id)?;
        let path = self.file(id, ".pkl");
        let properties = fs::metadata(&path).and_then(|file| match file.len() {
            ..=MAX_PROPERTIES => fs::read(&path),
            len => Err(std::io::Error::other(format!("{len} bytes exceed the size limit of properties"))),
        });
        let properties = properties.map_err(|error| InteropError::new(&path, error))?;
        let pickle = parse(&properties).map_err(|defect| InteropError::new(&path, defect))?;
        let mut properties = Properties(pickle.root())
            .read(self.transpose, &self.configuration)
            .map_err(|defect| InteropError::new(&path, defect))?;
        let (channels, z, y, x) = data.dim();
        if channels != self.channels || labels.dim() != (z, y, x) {
            let defect =
                format!("arrays of shape {:?} and {:?}, {} channels", data.shape(), labels.shape(), self.channels);
            return Err(InteropError::new(&path, format!("does not match the {defect}")));
        }
        properties.shape_after_resampling = [z, y, x];
        properties.class_locations = self.classes.sample(labels.view(), case_number(id));
        Ok(PreprocessedCase { data, labels: Some(labels), properties })
    }

    /// Reads the intensities and labels of a case from one `.npz`, or from two `.npy` files if it was unpacked.
    fn arrays(&self, id: &str) -> Result<(Array4<f32>, Array3<i16>), InteropError> {
        let npz = self.file(id, ".npz");
        let read = |key: &str, ending: &str| {
            let (path, bytes) = match npz.exists() {
                true => (npz.clone(), npz_entry(&npz, key)),
                false => {
                    let path = self.file(id, ending);
                    let bytes = fs::read(&path).map_err(|error| error.to_string());
                    (path, bytes)
                }
            };
            bytes
                .map(|bytes| (path.clone(), bytes))
                .map_err(|defect| InteropError::new(&path, format!("{key}: {defect}")))
        };
        let (path, bytes) = read("data", ".npy")?;
        let data = array::<f32>(&bytes).map_err(|defect| InteropError::new(&path, format!("data: {defect}")))?;
        let (path, bytes) = read("seg", "_seg.npy")?;
        let labels = match array::<i8>(&bytes) {
            Ok(labels) => Ok(labels.mapv(i16::from)),
            Err(_) => array::<i16>(&bytes),
        };
        let labels = labels.map_err(|defect| InteropError::new(&path, format!("seg: {defect}")))?;
        let (first, ..) = labels.dim();
        if first == 0 {
            return Err(InteropError::new(&path, "seg: contains no voxels"));
        }
        // The second stage of a cascade stores nothing more here; only the first map belongs to the case.
        Ok((data, labels.index_axis_move(ndarray::Axis(0), 0)))
    }
}

/// Pickled properties of a case (`default_preprocessor.py`, `simpleitk_reader_writer.py`, `nibabel_reader_writer.py`).
struct Properties<'a>(Value<'a>);

impl Properties<'_> {
    fn read(&self, transpose: [usize; 3], configuration: &Configuration) -> Result<CaseProperties, String> {
        let geometry = self.geometry()?;
        let before = transpose.map(|raw| geometry.spacing[raw]);
        let target = configuration.spacing3();
        let bbox: Vec<_> =
            self.required("bbox_used_for_cropping")?.items().ok_or("bbox_used_for_cropping is not a list")?.collect();
        let bbox: Option<Vec<[usize; 2]>> = bbox.into_iter().map(|sides| sides.indices()?.try_into().ok()).collect();
        let bbox = bbox.and_then(|bbox| <[[usize; 2]; 3]>::try_from(bbox).ok());
        let properties = CaseProperties {
            geometry,
            transpose_forward: transpose,
            shape_before_cropping: self.shape("shape_before_cropping")?,
            bbox_used_for_cropping: bbox.ok_or("bbox_used_for_cropping is not three pairs of numbers")?,
            shape_after_cropping_and_before_resampling: self.shape("shape_after_cropping_and_before_resampling")?,
            shape_after_resampling: [0; 3],
            spacing_after_resampling: if configuration.is_2d() { [before[0], target[1], target[2]] } else { target },
            class_locations: BTreeMap::new(),
        };
        let fits = (0..3).all(|axis| {
            let [first, end] = properties.bbox_used_for_cropping[axis];
            first < end
                && end <= properties.shape_before_cropping[axis]
                && end - first == properties.shape_after_cropping_and_before_resampling[axis]
        });
        if fits { Ok(properties) } else { Err("bbox_used_for_cropping contradicts the shapes".into()) }
    }

    fn required(&self, key: &str) -> Result<Value<'_>, String> {
        self.0.get(key).ok_or_else(|| format!("has no {key}"))
    }

    fn shape(&self, key: &str) -> Result<[usize; 3], String> {
        let shape = self.required(key)?.indices().and_then(|shape| <[usize; 3]>::try_from(shape).ok());
        shape.filter(|shape| !shape.contains(&0)).ok_or_else(|| format!("{key} is not three numbers above 0"))
    }

    /// Reads the geometry of the raw image as stored by SimpleITK or nibabel.
    fn geometry(&self) -> Result<Geometry, String> {
        let spacing = floats::<3>(self.required("spacing")?).ok_or("spacing is not three numbers")?;
        if spacing.iter().any(|spacing| !(spacing.is_finite() && *spacing > 0.0)) {
            return Err(format!("spacing {spacing:?} must be positive"));
        }
        let placed = |origin, direction| Geometry { spacing, origin, direction, ..Geometry::default() };
        if let Some(stuff) = self.0.get("sitk_stuff") {
            return simpleitk(stuff)
                .map(|(origin, direction)| placed(origin, direction))
                .ok_or_else(|| "sitk_stuff has no origin and direction of two or three axes".to_owned());
        }
        match self.0.get("nibabel_stuff") {
            Some(stuff) if stuff.get("reoriented_affine").is_some() => Err(
                "was read by NibabelIOWithReorient, which reorients images; run `preprocess` on the raw dataset instead"
                    .into(),
            ),
            Some(stuff) => nibabel(stuff, spacing)
                .map(|(origin, direction)| placed(origin, direction))
                .ok_or_else(|| "nibabel_stuff has no affine matrix".to_owned()),
            None => Ok(Geometry { spacing, ..Geometry::default() }),
        }
    }
}

/// Reads origin and direction in `(x, y, z)` as stored by SimpleITK; 2D images lie in the x-y plane.
fn simpleitk(stuff: Value) -> Option<([f64; 3], [[f64; 3]; 3])> {
    let (origin, direction) = (stuff.get("origin")?, stuff.get("direction")?);
    if let (Some([x, y]), Some([a, b, c, d])) = (floats::<2>(origin), floats::<4>(direction)) {
        return Some(([x, y, 0.0], [[a, b, 0.0], [c, d, 0.0], [0.0, 0.0, 1.0]]));
    }
    let [a, b, c, d, e, f, g, h, i] = floats::<9>(direction)?;
    Some((floats::<3>(origin)?, [[a, b, c], [d, e, f], [g, h, i]]))
}

/// Reads origin and direction from a NIfTI affine, whose first two axes have the opposite sign.
fn nibabel(stuff: Value, spacing: [f64; 3]) -> Option<([f64; 3], [[f64; 3]; 3])> {
    let affine = Array::from_value(stuff.get("original_affine")?)?;
    let at = |row: usize, column: usize| Some(affine.at(row, column)? * if row < 2 { -1.0 } else { 1.0 });
    let mut direction = [[0.0; 3]; 3];
    let mut origin = [0.0; 3];
    for row in 0..3 {
        origin[row] = at(row, 3)?;
        for axis in 0..3 {
            // Column x belongs to the last of (z, y, x).
            direction[row][axis] = at(row, axis)? / spacing[2 - axis];
        }
    }
    Some((origin, direction))
}

/// Reads exactly `N` numbers.
fn floats<const N: usize>(value: Value) -> Option<[f64; N]> {
    value.items()?.map(Value::float).collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// Reads the bytes of an array in a NumPy archive.
fn npz_entry(path: &Path, key: &str) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| error.to_string())?;
    let mut entry = archive.by_name(&format!("{key}.npy")).map_err(|error| error.to_string())?;
    // Read to the end instead of trusting the size in the archive.
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn array<T: NpyElement>(bytes: &[u8]) -> Result<Array4<T>, String> {
    let (data_at, shape) = decode_header::<T>(bytes)?;
    if byte_length::<T>(data_at, shape) != Some(bytes.len()) {
        return Err(format!("has {} bytes, which does not match its shape {shape:?}", bytes.len()));
    }
    let elements = bytemuck::pod_collect_to_vec(&bytes[data_at..]);
    Array4::from_shape_vec(shape, elements).map_err(|error| error.to_string())
}

/// Returns the files of a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>, InteropError> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut files: Vec<PathBuf> = entries.map_err(|error| InteropError::new(folder, error))?;
    files.sort();
    Ok(files)
}

fn copy(from: &Path, to: &Path) -> Result<(), InteropError> {
    let bytes = fs::read(from).map_err(|error| InteropError::new(from, error))?;
    fsio::write_bytes(to, &bytes).map_err(|error| InteropError::new(to, error))
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), InteropError> {
    fsio::write_json(path, value).map_err(|error| InteropError::new(path, error))
}
