//! Import and export of trained models of nnU-Net v2: a folder with `plans.json`, `dataset.json` and
//! `fold_X/checkpoint_final.pth`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::pickle::Value;
use super::torch_file::{self, TorchFile};
use super::{InteropError, is_file_name, names};
use nnunet_core::fsio;
use nnunet_core::pickle::PickleWriter;
use nnunet_data::dataset::DatasetJson;
use nnunet_data::plan::Plans;
use nnunet_data::work::{RunDir, WorkDir};
use nnunet_nn::backend::Cpu;
use nnunet_nn::checkpoint::SavedModel;
use nnunet_nn::model::{ModelDescription, ParameterSpec, TensorState, UNet};

const PLANS: &str = "plans.json";
const DATASET: &str = "dataset.json";
const FINAL: &str = "checkpoint_final.pth";
const BEST: &str = "checkpoint_best.pth";
/// Checkpoint that nnU-Net keeps during training.
const LATEST: &str = "checkpoint_latest.pth";

/// Destination of imported networks.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Folder of runs: each fold of a model folder becomes `fold_X` in it; a single file becomes a run at this path.
    Folder(PathBuf),
    /// Runs of a work folder, below the name of the configuration.
    Work(WorkDir),
}

/// Converts checkpoints of nnU-Net to checkpoints of this program and returns their run directories.
///
/// `source` is a model folder with all its folds, or one checkpoint.
///
/// # Errors
/// Returns an error if a file is missing or damaged, is not of nnU-Net v2, or contains a network that is not supported.
pub fn import(source: &Path, destination: &Destination) -> Result<Vec<RunDir>, InteropError> {
    if source.is_file() {
        let model = read_checkpoint(source)?;
        let run = match destination {
            Destination::Folder(folder) => RunDir::new(folder),
            Destination::Work(_) => run_of(destination, &model, &fold_of(source)),
        };
        check_not_trained(&run)?;
        model.write(&run.checkpoint_latest())?;
        return Ok(vec![run]);
    }
    let folds = folds(source)?;
    let mut runs = Vec::new();
    for fold in &folds {
        let folder = source.join(fold);
        let newest = [FINAL, LATEST].map(|name| folder.join(name)).into_iter().find(|path| path.exists());
        let best = Some(folder.join(BEST)).filter(|path| path.exists());
        let Some(first) = newest.as_ref().or(best.as_ref()) else {
            let defect = format!("contains neither {FINAL} nor {LATEST} nor {BEST}");
            return Err(InteropError::new(&folder, defect));
        };
        let model = read_checkpoint(first)?;
        let run = run_of(destination, &model, fold);
        check_not_trained(&run)?;
        // If only the best checkpoint exists, it also serves as the latest.
        model.write(&run.checkpoint_latest())?;
        if let Some(best) = best {
            read_checkpoint(&best)?.write(&run.checkpoint_best())?;
        }
        runs.push(run);
    }
    Ok(runs)
}

/// Checks that an import does not replace the checkpoints of a training. An earlier import has no log.
fn check_not_trained(run: &RunDir) -> Result<(), InteropError> {
    match run.log().exists() || run.config().exists() {
        true => Err(InteropError::new(run.root(), "holds a trained run, whose checkpoints would be replaced")),
        false => Ok(()),
    }
}

/// Reads the network of a checkpoint. Plans and dataset description are read from the surrounding model folder, as in
/// nnU-Net, or else from the checkpoint.
///
/// # Errors
/// Like [`import`].
pub fn read_checkpoint(path: &Path) -> Result<SavedModel, InteropError> {
    let (mut file, pickle) = TorchFile::open(path)?;
    let checkpoint = Checkpoint { path, root: pickle.root() };
    let init_args = checkpoint.required("init_args")?;
    let configuration = init_args.get("configuration").and_then(Value::text);
    let configuration = configuration.filter(|name| is_file_name(name));
    let configuration = configuration.ok_or_else(|| checkpoint.fail("init_args has no configuration"))?.to_owned();
    let (plans, dataset): (Plans, DatasetJson) = match checkpoint.model_folder() {
        Some(folder) => (Plans::load(&folder.join(PLANS))?, DatasetJson::load(&folder.join(DATASET))?),
        None => (checkpoint.description(init_args, "plans")?, checkpoint.description(init_args, "dataset_json")?),
    };
    let is_2d = plans.configuration(&configuration)?.is_2d();
    let mirror_axes = checkpoint.mirror_axes(is_2d)?;
    let description = ModelDescription { plans, dataset, configuration, mirror_axes };
    let weights = weights_of(path, checkpoint.required("network_weights")?, &mut file)?;
    UNet::<Cpu>::with_state(description.network_spec()?, &weights, &Default::default())
        .map_err(|error| checkpoint.fail(error))?;
    Ok(SavedModel { description, weights })
}

/// Reads only the weights of a checkpoint, by their canonical names.
///
/// # Errors
/// Returns an error if the file is damaged or has no `network_weights`.
pub fn read_weights(path: &Path) -> Result<Vec<TensorState>, InteropError> {
    let (mut file, pickle) = TorchFile::open(path)?;
    let checkpoint = Checkpoint { path, root: pickle.root() };
    weights_of(path, checkpoint.required("network_weights")?, &mut file)
}

/// Writes a model folder for nnU-Net's `nnUNetPredictor.initialize_from_trained_model_folder` and returns the
/// checkpoint's path; `fold` is a number or `all`. The fold is added to other folds of the same model in the folder.
///
/// # Errors
/// Returns an error if a file cannot be written, or if the folder contains another model.
pub fn export(model: &SavedModel, fold: &str, folder: &Path) -> Result<PathBuf, InteropError> {
    let SavedModel { description, weights } = model;
    check_same_model(description, folder)?;
    let is_2d = description.plans.configuration(&description.configuration)?.is_2d();
    let mut weights = weights.clone();
    if is_2d {
        names::to_2d(&mut weights);
    }
    let first_axis = usize::from(is_2d);
    let mirror_axes: Vec<usize> =
        description.mirror_axes.iter().filter_map(|axis| axis.checked_sub(first_axis)).collect();
    let json = |value: serde_json::Result<serde_json::Value>| value.map_err(|error| InteropError::new(folder, error));
    let (plans, dataset) =
        (json(serde_json::to_value(&description.plans))?, json(serde_json::to_value(&description.dataset))?);

    let mut pickle = PickleWriter::default();
    pickle.dict(|pickle| {
        pickle.text("network_weights");
        pickle.ordered_dict(|pickle| write_weights(pickle, &weights));
        pickle.text("init_args");
        pickle.dict(|pickle| {
            pickle.text("plans");
            pickle.json(&plans);
            pickle.text("configuration");
            pickle.text(&description.configuration);
            pickle.text("fold");
            match fold.parse() {
                Ok(number) => pickle.int(number),
                Err(_) => pickle.text(fold),
            }
            pickle.text("dataset_json");
            pickle.json(&dataset);
        });
        pickle.text("trainer_name");
        pickle.text("nnUNetTrainer");
        pickle.text("inference_allowed_mirroring_axes");
        pickle.ints(&mirror_axes);
    });
    let path = folder.join(format!("fold_{fold}")).join(FINAL);
    let storages: Vec<&[f32]> = weights.iter().map(|tensor| tensor.values.as_slice()).collect();
    torch_file::write(&path, &pickle.finish(), &storages)?;
    description.plans.save(&folder.join(PLANS))?;
    let file = folder.join(DATASET);
    fsio::write_json(&file, &description.dataset).map_err(|error| InteropError::new(&file, error))?;
    Ok(path)
}

/// Pickle of a checkpoint.
struct Checkpoint<'a> {
    path: &'a Path,
    root: Value<'a>,
}

impl<'a> Checkpoint<'a> {
    fn fail(&self, defect: impl std::fmt::Display) -> InteropError {
        InteropError::new(self.path, defect)
    }

    fn required(&self, key: &str) -> Result<Value<'a>, InteropError> {
        let entry = self.root.get(key).filter(|entry| entry.entries().is_some());
        entry.ok_or_else(|| match self.root.get(key) {
            Some(entry) => self.fail(format!("{key} is {}, not a dictionary", entry.kind())),
            None if self.root.entries().is_none() => {
                self.fail(format!("is {}, not a checkpoint of nnU-Net v2", self.root.kind()))
            }
            None => self.fail(format!("has no {key} and is not a checkpoint of nnU-Net v2")),
        })
    }

    /// Returns the model folder if this is a `fold_X/checkpoint.pth` in one.
    fn model_folder(&self) -> Option<&Path> {
        let folder = self.path.parent()?.parent()?;
        [PLANS, DATASET].iter().all(|name| folder.join(name).is_file()).then_some(folder)
    }

    fn description<T: DeserializeOwned>(&self, init_args: Value, key: &str) -> Result<T, InteropError> {
        let value = init_args.get(key).ok_or_else(|| {
            self.fail(format!(
                "init_args has no {key}; leave the checkpoint in its model folder, which has {PLANS} and {DATASET}"
            ))
        })?;
        let parsed = value.to_json().and_then(|json| serde_json::from_value(json).map_err(|error| error.to_string()));
        parsed.map_err(|defect| self.fail(format!("{key} of init_args: {defect}")))
    }

    /// Reads the mirror axes, indices into `(y, x)` for 2D in the file and always into `(z, y, x)` in this crate. A
    /// checkpoint without them is from a trainer without mirroring.
    fn mirror_axes(&self, is_2d: bool) -> Result<Vec<usize>, InteropError> {
        let key = "inference_allowed_mirroring_axes";
        let Some(axes) = self.root.get(key).filter(|axes| !axes.is_none()) else { return Ok(Vec::new()) };
        let first = usize::from(is_2d);
        let axes = axes.indices().map(|axes| axes.iter().map(|axis| axis.saturating_add(first)).collect());
        let axes: Option<Vec<usize>> = axes.filter(|axes: &Vec<usize>| axes.iter().all(|axis| *axis < 3));
        axes.ok_or_else(|| self.fail(format!("{key} must be a list of axes")))
    }
}

/// Reads each tensor of a `state_dict` once, skipping aliases.
fn weights_of(path: &Path, state: Value, file: &mut TorchFile) -> Result<Vec<TensorState>, InteropError> {
    let mut weights = Vec::new();
    for (name, value) in state.entries().into_iter().flatten() {
        let name = name.text().ok_or_else(|| InteropError::new(path, "a weight's name is not text"))?;
        let Some(name) = names::canonical_name(name) else { continue };
        let tensor =
            file.tensor(value).map_err(|defect| InteropError::new(path, format!("tensor {name}: {defect}")))?;
        let mut shape = tensor.shape;
        names::to_3d(&mut shape);
        weights.push(TensorState { spec: ParameterSpec { name: name.to_owned(), shape }, values: tensor.values });
    }
    weights.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok(weights)
}

/// Writes every weight under all its names; aliases share a storage.
fn write_weights(pickle: &mut PickleWriter, weights: &[TensorState]) {
    for (number, TensorState { spec, values }) in weights.iter().enumerate() {
        let mut strides = vec![1; spec.shape.len()];
        for axis in (1..strides.len()).rev() {
            strides[axis - 1] = strides[axis] * spec.shape[axis];
        }
        for name in names::all_names(&spec.name) {
            pickle.text(&name);
            pickle.call("torch._utils", "_rebuild_tensor_v2", |pickle| {
                pickle.persistent(|pickle| {
                    pickle.text("storage");
                    pickle.name("torch", "FloatStorage");
                    pickle.text(&number.to_string());
                    pickle.text("cpu");
                    pickle.int(values.len() as i64);
                });
                pickle.int(0);
                pickle.ints(&spec.shape);
                pickle.ints(&strides);
                pickle.bool(false);
                pickle.ordered_dict(|_| ());
            });
        }
    }
}

/// Returns the sorted names of the folds in a model folder.
fn folds(folder: &Path) -> Result<Vec<String>, InteropError> {
    let fail = |error: std::io::Error| InteropError::new(folder, error);
    let mut folds = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if name.starts_with("fold_") && entry.path().is_dir() {
            folds.push(name);
        }
    }
    folds.sort();
    if folds.is_empty() {
        let hint = "pass the folder TRAINER__PLANS__CONFIGURATION of nnUNet_results, or a checkpoint";
        return Err(InteropError::new(folder, format!("contains no folder fold_X; {hint}")));
    }
    Ok(folds)
}

/// Returns the name of the checkpoint's fold folder, or `fold_0`.
fn fold_of(checkpoint: &Path) -> String {
    let folder = checkpoint.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    if folder.starts_with("fold_") { folder.into_owned() } else { "fold_0".into() }
}

fn run_of(destination: &Destination, model: &SavedModel, fold: &str) -> RunDir {
    match destination {
        Destination::Folder(folder) => RunDir::new(folder.join(fold)),
        Destination::Work(work) => RunDir::new(work.runs(&model.description.configuration).join(fold)),
    }
}

/// Checks that the folder is empty or contains folds of the same model, because folds share the plans.
fn check_same_model(description: &ModelDescription, folder: &Path) -> Result<(), InteropError> {
    let path = folder.join(PLANS);
    if !path.exists() {
        return Ok(());
    }
    let there = ModelDescription {
        plans: Plans::load(&path)?,
        dataset: DatasetJson::load(&folder.join(DATASET))?,
        ..description.clone()
    };
    let difference = match there.plans.configurations.contains_key(&there.configuration) {
        true => description.first_difference(&there)?,
        false => Some("configuration"),
    };
    match difference {
        Some(what) => {
            Err(InteropError::new(&path, format!("belongs to a model with a different {what}; choose another folder")))
        }
        None => Ok(()),
    }
}
