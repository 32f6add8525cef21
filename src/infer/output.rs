//! Output folder with label maps, probabilities and metadata.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ndarray::Array4;
use ndarray_npy::{NpzReader, NpzWriter};
use serde_json::json;

use super::InferError;
use super::export::Segmentation;
use nnunet_core::fsio::{self, PartialFile};
use nnunet_core::pickle::to_text_pickle;
use nnunet_core::protect::Inputs;
use nnunet_data::dataset::{CaseFiles, DatasetJson};
use nnunet_data::store::CaseProperties;
use nnunet_image::{Geometry, LabelMap, read_header, read_labels, write_labels};
use nnunet_nn::model::ModelDescription;

/// nnU-Net's name for the array of class probabilities.
const PROBABILITIES: &str = "probabilities";

/// Output folder with the results of cases, in nnU-Net v2's layout, so that its `ensemble` can read them.
///
/// ```text
/// OUTPUT/
///   dataset.json, plans.json      of the network
///   CASE.nii.gz                   labels, in the image's geometry
///   CASE.npz                      if requested: `probabilities` (class, z, y, x), f32, with the image's voxels
///   CASE.pkl                      with CASE.npz: geometry and cropping of the image
/// ```
pub struct OutputFolder<'a> {
    root: &'a Path,
    file_ending: &'a str,
    with_probabilities: bool,
}

impl<'a> OutputFolder<'a> {
    /// Checks, before the first write, that results in `root` would replace neither inputs nor files that are not
    /// results: a folder with results has the plans of a network and its `dataset.json`.
    ///
    /// With `continues`, the caller states that label maps in the folder are results of an earlier run.
    ///
    /// # Errors
    /// Returns an error that names the file that would be lost.
    pub fn check(
        root: &Path,
        model: &ModelDescription,
        cases: &[CaseFiles],
        continues: bool,
    ) -> Result<(), InferError> {
        let files = cases.iter().flat_map(|case| case.images.iter().chain(&case.label));
        let inputs = Inputs::new(files);
        let ending = &model.dataset.file_ending;
        let names = |case: &CaseFiles| [ending, ".npz", ".pkl"].map(|ending| format!("{}{ending}", case.id));
        let foreign = |name: &str| InferError::NotResults {
            path: root.to_owned(),
            defect: format!("contains {name}, which is not a result of `predict` with this network"),
        };
        let has_results = root.join("plans.json").is_file();
        for name in cases.iter().flat_map(names) {
            inputs.check(&root.join(&name))?;
            if !has_results && !continues && root.join(&name).exists() {
                return Err(foreign(&name));
            }
        }
        // Images or truth of a raw dataset, or a run; whatever the caller states.
        let resolved = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let name = resolved.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_raw = ["imagesTr", "labelsTr", "imagesTs", "labelsTs"].contains(&name)
            && resolved.parent().is_some_and(|dataset| dataset.join("dataset.json").exists());
        if is_raw || root.join("imagesTr").exists() {
            let defect = "is a folder of a raw dataset".to_owned();
            return Err(InferError::NotResults { path: root.to_owned(), defect });
        }
        if root.join("config.toml").exists() && root.join("checkpoints").exists() {
            return Err(InferError::NotResults { path: root.to_owned(), defect: "is a run directory".to_owned() });
        }
        // Results of another network.
        let description = root.join("dataset.json");
        let is_same = |found: DatasetJson| found == model.dataset;
        if description.exists() && !(has_results && DatasetJson::load(&description).is_ok_and(is_same)) {
            return Err(foreign("dataset.json"));
        }
        Ok(())
    }

    /// Creates the folder if it is missing and writes the description of the network.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created or written to.
    pub fn create(root: &'a Path, model: &'a ModelDescription, with_probabilities: bool) -> Result<Self, InferError> {
        fs::create_dir_all(root).map_err(|source| write_error(root, source))?;
        let write = |name: &str, write: &dyn Fn(&Path) -> io::Result<()>| {
            let path = root.join(name);
            write(&path).map_err(|source| write_error(&path, source))
        };
        write("dataset.json", &|path| fsio::write_json(path, &model.dataset))?;
        write("plans.json", &|path| fsio::write_json(path, &model.plans))?;
        Ok(Self { root, file_ending: &model.dataset.file_ending, with_probabilities })
    }

    /// Returns whether all results of a case exist and are complete: the label map has the shape and the geometry of the
    /// image.
    pub fn is_complete(&self, files: &CaseFiles) -> bool {
        let case = files.id.as_str();
        let labels = self.labels(case);
        let is_of_image = |labels: &LabelMap| {
            let Some(Ok(image)) = files.images.first().map(|image| read_header(image)) else { return false };
            labels.data.shape() == &image.shape[1..] && labels.geometry.difference(&image.geometry).is_none()
        };
        labels.is_file()
            && read_labels(&labels).is_ok_and(|labels| is_of_image(&labels))
            && (!self.with_probabilities || (self.pickle(case).is_file() && has_probabilities(&self.npz(case)).is_ok()))
    }

    /// Writes the results of a case.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub fn write(
        &self,
        case: &str,
        segmentation: &Segmentation,
        properties: &CaseProperties,
    ) -> Result<(), InferError> {
        if let Some(probabilities) = &segmentation.probabilities {
            write_probabilities(&self.npz(case), probabilities)?;
            let pickle = self.pickle(case);
            fsio::write_bytes(&pickle, &properties_pickle(properties))
                .map_err(|source| write_error(&pickle, source))?;
        }
        // The label map is written last: its existence implies that of the other files.
        Ok(write_labels(&self.labels(case), &segmentation.labels)?)
    }

    fn labels(&self, case: &str) -> PathBuf {
        self.root.join(format!("{case}{}", self.file_ending))
    }

    fn npz(&self, case: &str) -> PathBuf {
        self.root.join(format!("{case}.npz"))
    }

    fn pickle(&self, case: &str) -> PathBuf {
        self.root.join(format!("{case}.pkl"))
    }
}

/// Writes `probabilities`, `(class, z, y, x)`, under nnU-Net's key.
fn write_probabilities(path: &Path, probabilities: &Array4<f32>) -> Result<(), InferError> {
    let write = |file: &mut io::BufWriter<&mut PartialFile>| {
        let mut npz = NpzWriter::new_compressed(file);
        npz.add_array(PROBABILITIES, probabilities).map_err(io::Error::other)?;
        npz.finish().map(|_| ()).map_err(io::Error::other)
    };
    fsio::write_atomically(path, write).map_err(|source| write_error(path, source))
}

/// The central directory of a zip archive is at its end, so an archive that lists the array is not truncated.
fn has_probabilities(path: &Path) -> Result<(), io::Error> {
    let mut npz = NpzReader::new(File::open(path)?).map_err(io::Error::other)?;
    let names = npz.names().map_err(io::Error::other)?;
    let is_there = names.iter().any(|name| name.trim_end_matches(".npy") == PROBABILITIES);
    if is_there { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn write_error(path: &Path, source: io::Error) -> InferError {
    InferError::Write { path: path.to_owned(), source }
}

/// Returns the pickle `CASE.pkl` that `nnUNetv2_ensemble` needs to convert `CASE.npz` to a label map: the geometry of
/// the image for the SimpleITK and nibabel readers, and the cropping.
fn properties_pickle(properties: &CaseProperties) -> Vec<u8> {
    let Geometry { spacing: [z, y, x], origin, direction, .. } = &properties.geometry;
    // The affine is RAS, ITK uses LPS.
    let affine = |row: usize| {
        let sign = if row < 2 { -1.0 } else { 1.0 };
        let [d0, d1, d2] = direction[row];
        [sign * d0 * x, sign * d1 * y, sign * d2 * z, sign * origin[row]]
    };
    let value = json!({
        "sitk_stuff": {"spacing": [x, y, z], "origin": origin, "direction": direction.concat()},
        "nibabel_stuff": {"original_affine": [affine(0), affine(1), affine(2), [0.0, 0.0, 0.0, 1.0]]},
        "spacing": properties.geometry.spacing,
        "shape_before_cropping": properties.shape_before_cropping,
        "bbox_used_for_cropping": properties.bbox_used_for_cropping,
        "shape_after_cropping_and_before_resampling": properties.shape_after_cropping_and_before_resampling,
    });
    to_text_pickle(&value)
}
