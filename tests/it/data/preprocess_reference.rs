//! Compares preprocessed arrays with nnU-Net v2's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis};
use ndarray_npy::{NpzReader, ReadableElement, read_npy};
use nnunet_dist::dataset::{Case, CaseFiles, Dataset, DatasetJson, extract_fingerprint};
use nnunet_dist::distributed::Single;
use nnunet_dist::image::LabelMap;
use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::plan::{PlannerOptions, Plans, plan};
use nnunet_dist::preprocess::{PreprocessedCase, Preprocessor, ResourceLimits, preprocess_dataset};
use nnunet_dist::store::{CaseStore, NativeStore, Patch};
use serde_json::{Value, json};

use crate::common;
use crate::skip::skip;

/// Largest allowed difference of normalized intensities.
const TOLERANCE: f32 = 1e-3;
/// At least this fraction of labels must be identical.
const SAME_LABELS: f64 = 0.999;

#[test]
fn hippocampus_is_preprocessed_as_by_nnunet() {
    for data_path in common::fixtures("fixtures/hippocampus", "_data.npy") {
        let (plans, dataset) = plans_beside(&data_path);
        let files = case_beside(&data_path);
        let id = &files.id;
        let case = files.load(1).unwrap();

        let preprocessed = Preprocessor::new(&plans, "3d_fullres", &dataset).unwrap().run(&case).unwrap();
        let data: Array4<f32> = read_npy(&data_path).unwrap();
        let labels: Array4<i16> = read_npy(beside(&data_path, "_seg.npy")).unwrap();
        assert_same_arrays(id, &preprocessed, data.view(), labels.index_axis(Axis(0), 0));

        let expected = read_json(&beside(&data_path, "_props.json"));
        assert_same_properties(id, &preprocessed, &expected);
        for (class, list) in &preprocessed.properties.class_locations {
            assert_eq!(json!(list.len()), expected["class_locations_n"][class.to_string()], "{id}: class {class}");
            let here = |l: &[u32; 3]| labels[[0, l[0] as usize, l[1] as usize, l[2] as usize]];
            assert!(list.iter().all(|location| here(location) == *class), "{id}: class {class} lies elsewhere");
        }
    }
}

/// CT normalization, several channels, cropping to nonzero, resampling: all references in the folder.
#[test]
fn other_modalities_are_preprocessed_as_by_nnunet() {
    let Some(shared) = common::shared() else { return };
    let plans = read_json(&shared.join("fixtures/hippocampus/nnUNetPlans.json"));
    for npz_path in common::fixtures("fixtures/preproc_other", ".npz") {
        let id = npz_path.file_stem().unwrap().to_str().unwrap();
        let settings = read_json(&npz_path.with_extension("json"));
        let case = match reference_case(&shared.join("data"), id, &settings) {
            Ok(case) => case,
            Err(missing) => {
                skip(format_args!("{id}: its source {missing} is not below {}", shared.join("data").display()));
                continue;
            }
        };
        let channels = case.image.data.len_of(Axis(0));
        let plans: Plans = serde_json::from_value(plans_as(plans.clone(), &settings, channels)).unwrap();
        let dataset = dataset_of(channels);
        let preprocessed = Preprocessor::new(&plans, "3d_fullres", &dataset).unwrap().run(&case).unwrap();

        let data: Array4<f32> = read_npz(&npz_path, "data");
        let labels: Array4<i8> = read_npz(&npz_path, "seg");
        let labels = labels.index_axis(Axis(0), 0).mapv(i16::from);
        assert_same_arrays(id, &preprocessed, data.view(), labels.view());
        assert_same_properties(id, &preprocessed, &settings["props"]);
    }
}

#[test]
fn a_preprocessed_dataset_replaces_the_contents_of_the_store() {
    let references = common::fixtures("fixtures/hippocampus", "_data.npy");
    let Some(first) = references.first() else { return };
    let (plans, json) = plans_beside(first);
    let root = first.parent().unwrap().to_path_buf();
    let cases: Vec<CaseFiles> = references.iter().map(|path| case_beside(path)).collect();
    let mut dataset = Dataset { root, name: "Dataset104_Hippo200".into(), json, cases };
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("removed_from_the_dataset.json"), "{}").unwrap();
    fs::write(out.path().join(".partial-abc"), "half").unwrap();

    let done = Mutex::new(Vec::new());
    let on_case = |id: &str| done.lock().unwrap().push(id.to_owned());
    let report =
        preprocess_dataset(&dataset, &plans, "3d_fullres", out.path(), ResourceLimits::threads(2), &on_case, &Single)
            .unwrap();
    assert_eq!(report.cases, references.len());
    let mut done = done.into_inner().unwrap();
    done.sort();
    let store = NativeStore::open(out.path()).unwrap();
    assert_eq!(store.case_ids(), done);
    // Three files per case, the manifest and the checksums.
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 3 * references.len() + 2);
    for path in &references {
        let id = case_beside(path).id;
        let [z, y, x] = store.info(&id).unwrap().shape;
        let mut patch = Patch { data: Array4::zeros((1, z, y, x)), labels: Array3::zeros((z, y, x)), previous: None };
        store.read_patch(&id, [0; 3], &mut patch).unwrap();
        let expected: Array4<f32> = read_npy(path).unwrap();
        assert!(patch.data.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= TOLERANCE), "{id}");
    }

    dataset.cases[0].label = Some(dataset.root.join("not_there.nii.gz"));
    let error =
        preprocess_dataset(&dataset, &plans, "3d_fullres", out.path(), ResourceLimits::threads(1), &|_| {}, &Single)
            .unwrap_err()
            .to_string();
    assert!(error.contains(&dataset.cases[0].id) && error.contains("not_there.nii.gz"), "{error}");
}

#[test]
fn the_output_does_not_depend_on_threads_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("Dataset001_Phantom");
    PhantomOptions { train_cases: 5, test_cases: 0, shape: [20, 24, 28], seed: 7 }.generate(&raw).unwrap();
    let dataset = Dataset::open(&raw).unwrap();
    let fingerprint = extract_fingerprint(&dataset).unwrap();
    let plans = plan(&dataset.name, &dataset.json, &fingerprint, &PlannerOptions::default()).unwrap();

    let written = |limits: ResourceLimits| {
        let out = tempfile::tempdir().unwrap();
        preprocess_dataset(&dataset, &plans, "3d_fullres", out.path(), limits, &|_| {}, &Single).unwrap();
        let mut files: Vec<_> = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let contents = |path: PathBuf| (path.file_name().unwrap().to_owned(), fs::read(path).unwrap());
        files.into_iter().map(contents).collect::<Vec<_>>()
    };
    let expected = written(ResourceLimits::threads(1));
    assert_eq!(expected.len(), 3 * 5 + 2);
    // One byte: each case alone. A megabyte: some at the same time.
    for (threads, memory) in [(1, 1), (3, 1), (3, 1_000_000), (3, u64::MAX)] {
        let same = written(ResourceLimits { threads, memory: Some(memory) }) == expected;
        assert!(same, "{threads} threads and {memory} bytes write something else");
    }
}

fn assert_same_arrays(id: &str, got: &PreprocessedCase, data: ArrayView4<f32>, labels: ArrayView3<i16>) {
    assert_eq!(got.data.shape(), data.shape(), "{id}");
    let worst = got.data.iter().zip(&data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let got_labels = got.labels.as_ref().expect("the case has labels");
    assert_eq!(got_labels.shape(), labels.shape(), "{id}");
    let same = got_labels.iter().zip(&labels).filter(|(a, b)| a == b).count() as f64 / labels.len() as f64;
    println!("{id}: intensities differ by at most {worst:.1e}, {:.3} % of labels are identical", 100.0 * same);
    assert!(worst <= TOLERANCE, "{id}: intensities differ by {worst}");
    assert!(same > SAME_LABELS, "{id}: only {same} of labels are identical");
}

fn assert_same_properties(id: &str, got: &PreprocessedCase, expected: &Value) {
    let got = serde_json::to_value(&got.properties).unwrap();
    for key in ["shape_before_cropping", "bbox_used_for_cropping", "shape_after_cropping_and_before_resampling"] {
        assert_eq!(got[key], expected[key], "{id}: {key}");
    }
    assert_eq!(got["geometry"]["spacing"], expected["spacing"], "{id}: spacing");
}

/// The file of the same case with another ending.
fn beside(data_path: &Path, ending: &str) -> PathBuf {
    PathBuf::from(data_path.to_str().unwrap().replace("_data.npy", ending))
}

/// The raw files of a single-channel reference.
fn case_beside(data_path: &Path) -> CaseFiles {
    let id = data_path.file_name().unwrap().to_str().unwrap().trim_end_matches("_data.npy").to_owned();
    CaseFiles { id, images: vec![beside(data_path, "_0000.nii.gz")], label: Some(beside(data_path, ".nii.gz")) }
}

fn plans_beside(data_path: &Path) -> (Plans, DatasetJson) {
    let read = |name: &str| read_json(&data_path.with_file_name(name));
    let plans = serde_json::from_value(read("nnUNetPlans.json")).unwrap();
    (plans, serde_json::from_value(read("dataset.json")).unwrap())
}

/// The case that a reference was made from, or the name of a missing file.
///
/// A reference without labels still has nnU-Net's mask of the outside as its label map; an empty label map gives it.
fn reference_case(data: &Path, id: &str, settings: &Value) -> Result<Case, String> {
    let text = |value: &Value| value.as_str().expect("a path").to_owned();
    let sources = settings["files"].as_array().unwrap().iter().map(text);
    let images = sources.enumerate().map(|(channel, source)| find(data, &source, &format!("_{channel:04}")));
    let images = images.collect::<Result<Vec<_>, _>>()?;
    let label = (!settings["seg"].is_null()).then(|| find(data, &text(&settings["seg"]), "")).transpose()?;
    let channels = images.len();
    let mut case = CaseFiles { id: id.to_owned(), images, label }.load(channels).unwrap();
    case.label.get_or_insert_with(|| LabelMap {
        data: Array3::zeros(case.image.data.index_axis(Axis(0), 0).raw_dim()),
        geometry: case.image.geometry.clone(),
    });
    Ok(case)
}

/// Finds a file of a public dataset below `data`: by its own name, or by its folder's name in nnU-Net's raw layout.
fn find(data: &Path, source: &str, channel: &str) -> Result<PathBuf, String> {
    let source = Path::new(source);
    let own_name = source.file_name().unwrap().to_str().unwrap();
    let case = source.parent().and_then(Path::file_name).unwrap().to_str().unwrap();
    let raw_name = format!("{case}{channel}.nii.gz");
    let labels = channel.is_empty();
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let in_raw_folder = path.parent().unwrap().ends_with(if labels { "labelsTr" } else { "imagesTr" });
        name == own_name || (in_raw_folder && name == raw_name)
    };
    files_below(data).into_iter().find(named).ok_or_else(|| source.display().to_string())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// Plans whose full resolution has the reference's settings, equal for every channel.
fn plans_as(mut plans: Value, settings: &Value, channels: usize) -> Value {
    let configuration = &mut plans["configurations"]["3d_fullres"];
    configuration["spacing"] = settings["spacing"].clone();
    configuration["normalization_schemes"] = json!(vec![&settings["norm"]; channels]);
    configuration["use_mask_for_norm"] = json!(vec![&settings["use_mask"]; channels]);
    plans["foreground_intensity_properties_per_channel"] =
        (0..channels).map(|channel| (channel.to_string(), settings["ip"].clone())).collect();
    plans
}

fn dataset_of(channels: usize) -> DatasetJson {
    let names: serde_json::Map<_, _> = (0..channels).map(|c| (c.to_string(), json!(format!("channel {c}")))).collect();
    serde_json::from_value(json!({
        "channel_names": names,
        "labels": {"background": 0, "structure": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }))
    .unwrap()
}

fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read_npz<T: ReadableElement>(path: &Path, name: &str) -> Array4<T> {
    let mut npz = NpzReader::new(File::open(path).unwrap()).unwrap();
    npz.by_name(name).unwrap_or_else(|error| panic!("{}: {name}: {error}", path.display()))
}
