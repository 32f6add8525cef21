//! Compares plans with nnU-Net v2's (`fixtures/planner`, `fixtures/real_plans`, `fixtures/hippocampus`).

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nnunet_dist::dataset::{DatasetJson, Fingerprint};
use nnunet_dist::plan::{self, PlanError, Planner, PlannerOptions, Plans, Topology};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::common;

/// Relative tolerance of all non-integer numbers.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Task {
    dataset_json: DatasetJson,
    fingerprint: Fingerprint,
    plans: Map<String, Value>,
}

/// The tasks of `fixtures/planner`; the other files there are tables (lists).
fn tasks() -> Vec<(PathBuf, Task)> {
    let files = common::fixtures("fixtures/planner", ".json").into_iter();
    let tasks = files.filter(|path| read::<Value>(path).is_object()).map(|path| (path.clone(), read(&path)));
    tasks.collect()
}

/// The tables of `fixtures/planner` whose rows have this key.
fn tables(key: &str) -> Vec<Vec<Value>> {
    let files = common::fixtures("fixtures/planner", ".json").into_iter();
    let tables = files.filter_map(|path| serde_json::from_value::<Vec<Value>>(read(&path)).ok());
    let tables: Vec<_> = tables.filter(|rows| rows.first().is_some_and(|row| row.get(key).is_some())).collect();
    assert!(!tables.is_empty() || common::shared().is_none(), "no table has {key:?}");
    tables
}

/// The planner options of the reference plans with this name.
fn options(plans: &str) -> PlannerOptions {
    let (planner, gpu_memory_gb) = match plans.strip_suffix("GB").and_then(|name| name.rsplit_once('_')) {
        Some((planner, memory)) => (planner, Some(memory.parse().unwrap())),
        None => (plans, None),
    };
    let planner = Planner::from_str(&planner.replace('_', "-"), false).unwrap();
    let options = PlannerOptions::for_planner(planner);
    PlannerOptions { gpu_memory_gb: gpu_memory_gb.unwrap_or(options.gpu_memory_gb), ..options }
}

#[test]
fn plans_of_every_task_equal_nnunets() {
    for (path, task) in tasks() {
        for (name, expected) in &task.plans {
            let options = PlannerOptions { plans_name: text(&expected["plans_name"]).to_owned(), ..options(name) };
            let planned = plan::plan(text(&expected["dataset_name"]), &task.dataset_json, &task.fingerprint, &options);
            assert_same(&planned.unwrap(), expected, &format!("{}: {name}", path.display()));
        }
    }
}

/// Expected values are nnU-Net 2.8.1's for the same tasks with its other planners, another GPU memory and another
/// spacing (`tests/fixtures/planners.json`).
#[test]
fn patches_and_batches_of_the_other_planners_equal_nnunets() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/planners.json");
    let table: Map<String, Value> = read(&table);
    for (path, task) in tasks() {
        let Some(Value::Object(planners)) = table.get(path.file_stem().unwrap().to_str().unwrap()) else { continue };
        for (name, expected) in planners {
            let (planner, setting) = name.split_once(' ').unwrap_or((name, ""));
            let mut options = PlannerOptions::for_planner(Planner::from_str(planner, false).unwrap());
            match setting {
                "" => {}
                "spacing" => options.target_spacing = Some([2.0, 1.0, 1.5]),
                memory => options.gpu_memory_gb = memory.parse().unwrap(),
            }
            let plans = plan::plan("Dataset001", &task.dataset_json, &task.fingerprint, &options).unwrap();
            let full = plans.configurations.keys().filter(|name| *name != "3d_cascade_fullres");
            let found: Map<String, Value> = full.map(|name| (name.clone(), in_short(&plans, name))).collect();
            assert_alike(&Value::Object(found), expected, &format!("{}: {name}", path.display()));
        }
    }
}

/// The entry of a configuration in the table of planners.
fn in_short(plans: &Plans, name: &str) -> Value {
    let configuration = plans.configuration(name).unwrap();
    json!({
        "batch_size": configuration.batch_size,
        "patch_size": configuration.patch_size,
        "spacing": configuration.spacing,
        "n_stages": configuration.architecture.arch_kwargs["n_stages"],
    })
}

#[test]
fn plans_of_real_datasets_equal_nnunets() {
    let Some(shared) = common::shared() else { return };
    let folders = fs::read_dir(shared.join("fixtures/real_plans")).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<_> = folders.chain([shared.join("fixtures/hippocampus")]).filter(|path| path.is_dir()).collect();
    assert!(folders.len() > 1);
    for folder in folders {
        let expected: Value = read(&folder.join("nnUNetPlans.json"));
        let (dataset, fingerprint) =
            (read(&folder.join("dataset.json")), read(&folder.join("dataset_fingerprint.json")));
        let planned = plan::plan(text(&expected["dataset_name"]), &dataset, &fingerprint, &options_of(&expected));
        assert_same(&planned.unwrap(), &expected, &folder.display().to_string());
    }
}

#[test]
fn topologies_equal_nnunets() {
    for row in tables("patch_in").into_iter().flatten() {
        let numbers = |key: &str| -> Vec<f64> { serde_json::from_value(row[key].clone()).unwrap() };
        let topology = Topology::new(&numbers("spacing"), &numbers("patch_in"));
        let found = json!({
            "spacing": row["spacing"],
            "patch_in": row["patch_in"],
            "num_pool": topology.pools_per_axis,
            "strides": topology.strides,
            "kernels": topology.kernels,
            "patch": topology.patch_size,
            "div": topology.divisible_by,
        });
        assert_eq!(found, row);
    }
}

#[test]
fn memory_estimates_equal_nnunets() {
    let tasks = tasks();
    for row in tables("estimate").into_iter().flatten() {
        let (name, plans, configuration) = (text(&row["task"]), text(&row["plans"]), text(&row["config"]));
        let (_, task) = tasks.iter().find(|(path, _)| path.file_stem().unwrap() == name).unwrap();
        let reference: Plans = serde_json::from_value(task.plans[plans].clone()).unwrap();
        let configuration = reference.configuration(configuration).unwrap();
        let shape = configuration.network_shape().unwrap();
        let (channels, classes) = (task.dataset_json.channel_names.len(), task.dataset_json.labels.len());
        assert_eq!(json!(configuration.patch_size), row["patch"], "{row}");
        let size = plan::feature_map_size(&shape, configuration.patch_size3(), classes);
        assert_eq!(json!(size), row["estimate"], "{row}");
        assert_eq!(json!(plan::parameter_count(&shape, channels, classes)), row["params"], "{row}");
    }
}

#[test]
fn a_plans_file_of_nnunet_survives_reading_and_writing() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("nnUNetPlans.json");
    for (_, reference) in tasks().into_iter().flat_map(|(_, task)| task.plans) {
        fs::write(&copy, reference.to_string()).unwrap();
        let plans = Plans::load(&copy).unwrap();
        plans.save(&copy).unwrap();
        assert_eq!(Plans::load(&copy).unwrap(), plans);
        let written: Value = read(&copy);
        assert_alike(&written, &reference, "");
        // Keys in nnU-Net's order, so that a diff of the two files shows only real differences.
        assert_eq!(keys(&written), keys(&reference));
    }
}

#[test]
fn the_cascade_inherits_what_it_does_not_state() {
    let mut checked = 0;
    for plans in tasks().into_iter().flat_map(|(_, task)| task.plans.into_iter().map(|(_, plans)| plans)) {
        let plans: Plans = serde_json::from_value(plans).unwrap();
        if plans.configurations.contains_key("3d_cascade_fullres") {
            let mut cascade = plans.configuration("3d_cascade_fullres").unwrap();
            assert_eq!(cascade.previous_stage.take(), Some(json!("3d_lowres")));
            assert_eq!(cascade, plans.configuration("3d_fullres").unwrap());
            checked += 1;
        }
    }
    assert!(checked > 0 || common::shared().is_none());
}

/// Asserts that everything is equal up to the last digits of non-integer numbers.
fn assert_same(planned: &Plans, expected: &Value, place: &str) {
    let planned = serde_json::to_value(planned).unwrap();
    assert_alike(&planned, expected, place);
    assert_eq!(keys(&planned["configurations"]), keys(&expected["configurations"]), "{place}");
}

fn assert_alike(found: &Value, expected: &Value, place: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for key in expected.keys().chain(found.keys()) {
                let [found, expected] = [found, expected]
                    .map(|object| object.get(key).unwrap_or_else(|| panic!("{place}: only one has {key}")));
                assert_alike(found, expected, &format!("{place}.{key}"));
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{place}");
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_alike(found, expected, &format!("{place}[{index}]"));
            }
        }
        // nnU-Net writes the low resolution's median shape as integers, and the others as floats.
        (Value::Number(found), Value::Number(expected)) if found.is_f64() || expected.is_f64() => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "{place}: {found}, expected {expected}");
        }
        _ => assert_eq!(found, expected, "{place}"),
    }
}

/// All keys in their order, at all depths.
fn keys(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => {
            object.iter().flat_map(|(key, value)| [vec![key.clone()], keys(value)].concat()).collect()
        }
        _ => Vec::new(),
    }
}

/// Options with the name of the reference plans.
fn options_of(plans: &Value) -> PlannerOptions {
    PlannerOptions { plans_name: text(&plans["plans_name"]).to_owned(), ..PlannerOptions::default() }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Plans of synthetic datasets: options and errors.
mod made_up {
    use super::*;

    fn dataset() -> DatasetJson {
        let value = json!({
            "channel_names": {"0": "CT", "1": "MRI"},
            "labels": {"background": 0, "organ": 1},
            "numTraining": 10,
            "file_ending": ".nii.gz",
        });
        serde_json::from_value(value).unwrap()
    }

    fn fingerprint(shape: [usize; 3], spacing: [f64; 3]) -> Fingerprint {
        let value = json!({
            "foreground_intensity_properties_per_channel": {},
            "median_relative_size_after_cropping": 0.5,
            "shapes_after_crop": vec![shape; 10],
            "spacings": vec![spacing; 10],
        });
        serde_json::from_value(value).unwrap()
    }

    /// Large images: all four configurations.
    fn planned(configurations: &[&str]) -> Result<Plans, PlanError> {
        let configurations = configurations.iter().map(|name| name.to_string()).collect();
        let options = PlannerOptions { configurations, ..PlannerOptions::default() };
        plan::plan("Dataset001_Large", &dataset(), &fingerprint([400, 500, 500], [1.0; 3]), &options)
    }

    fn names(plans: &Plans) -> Vec<&str> {
        plans.configurations.keys().map(String::as_str).collect()
    }

    #[test]
    fn only_what_was_asked_for_is_planned_with_what_it_needs() {
        assert_eq!(names(&planned(&[]).unwrap()), ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]);
        assert_eq!(names(&planned(&["3d_fullres"]).unwrap()), ["3d_fullres"]);
        let cascade = planned(&["3d_cascade_fullres"]).unwrap();
        assert_eq!(names(&cascade), ["3d_lowres", "3d_fullres", "3d_cascade_fullres"]);
        assert!(cascade.configuration("3d_lowres").unwrap().next_stage.is_some());
        let lowres = planned(&["3d_lowres"]).unwrap();
        assert_eq!(lowres.configuration("3d_lowres").unwrap().next_stage, None);
    }

    /// nnU-Net plans no low resolution here, as a patch covers the whole image.
    #[test]
    fn a_cascade_can_be_forced_on_small_images() {
        let options = PlannerOptions { force_lowres: true, ..PlannerOptions::default() };
        let plan = |shape, options: &PlannerOptions| {
            plan::plan("Dataset002_Small", &dataset(), &fingerprint(shape, [1.0; 3]), options)
        };
        assert_eq!(names(&plan([40, 56, 40], &PlannerOptions::default()).unwrap()), ["2d", "3d_fullres"]);
        let forced = plan([40, 56, 40], &options).unwrap();
        assert_eq!(names(&forced), ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]);
        let [lowres, fullres] = ["3d_lowres", "3d_fullres"].map(|name| forced.configuration(name).unwrap());
        let voxels = |median: &[f64]| median.iter().product::<f64>();
        let ratio = voxels(&fullres.median_image_size_in_voxels) / voxels(&lowres.median_image_size_in_voxels);
        assert!((1.9..2.5).contains(&ratio), "{ratio}");
        assert_eq!(lowres.next_stage_names(), ["3d_cascade_fullres"]);
        let cascade = forced.configuration("3d_cascade_fullres").unwrap();
        assert_eq!((cascade.previous_stage_name(), cascade.next_stage_names().len()), (Some("3d_lowres"), 0));
        assert_eq!(
            cascade.num_input_channels(&dataset()),
            dataset().num_channels() + dataset().foreground_classes().len()
        );
        // If nnU-Net plans a cascade itself, the option changes nothing.
        let large = plan([400, 500, 500], &options).unwrap();
        assert_eq!(large.configurations, planned(&[]).unwrap().configurations);
        assert!(plan([1, 56, 40], &options).unwrap_err().to_string().contains("more than one slice"));
    }

    #[test]
    fn channels_get_their_normalisation_and_mask() {
        let configuration = planned(&[]).unwrap().configuration("2d").unwrap();
        assert_eq!(configuration.normalization_schemes, ["CTNormalization", "ZScoreNormalization"]);
        assert_eq!(configuration.use_mask_for_norm, [false, true]);
    }

    #[test]
    fn impossible_plans_are_errors_with_a_reason() {
        let plan = |fingerprint: &Fingerprint, gpu_memory_gb: f64| {
            let options = PlannerOptions { gpu_memory_gb, ..PlannerOptions::default() };
            plan::plan("Dataset001", &dataset(), fingerprint, &options).unwrap_err().to_string()
        };
        let good = fingerprint([64, 64, 64], [1.0; 3]);
        let mut empty = good.clone();
        empty.shapes_after_crop.clear();
        assert!(plan(&empty, 8.0).contains("0 shapes and 10 spacings"));
        assert!(plan(&fingerprint([64, 64, 64], [1.0, 0.0, 1.0]), 8.0).contains("spacing [1.0, 0.0, 1.0]"));
        assert!(plan(&fingerprint([64, 0, 64], [1.0; 3]), 8.0).contains("shape [64, 0, 64]"));
        assert!(plan(&good, 1e-9).contains("no patch size of 2d fits into 0.000000001 GB"));
        assert!(plan(&good, f64::NAN).contains("GPU memory of NaN GB"));
        let message = planned(&["3d_highres"]).unwrap_err().to_string();
        assert!(message.contains("\"3d_highres\"") && message.contains("3d_lowres, 3d_fullres"), "{message}");
    }

    #[test]
    fn an_unknown_configuration_lists_the_known_ones() {
        let message = planned(&[]).unwrap().configuration("3d_full").unwrap_err().to_string();
        let expected = "no configuration \"3d_full\" in nnUNetPlans of Dataset001_Large; \
                        available: 2d, 3d_lowres, 3d_fullres, 3d_cascade_fullres";
        assert_eq!(message, expected);
    }

    #[test]
    fn a_damaged_file_is_named_with_its_defect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nnUNetPlans.json");
        let refused = |text: &[u8], defect: &str| {
            fs::write(&path, text).unwrap();
            let message = Plans::load(&path).unwrap_err().to_string();
            assert!(message.contains("nnUNetPlans.json") && message.contains(defect), "{message}");
        };
        let plans = serde_json::to_value(planned(&[]).unwrap()).unwrap();
        let text = plans.to_string();
        refused(&text.as_bytes()[..text.len() / 2], "EOF");
        refused(b"", "is empty");
        refused(&[0x1f, 0x8b, 0xff], "is not UTF-8 text");
        let mut without = plans.clone();
        without.as_object_mut().unwrap().remove("transpose_forward");
        refused(without.to_string().as_bytes(), "missing field `transpose_forward`");
        let mut without = plans.clone();
        without["configurations"]["3d_fullres"].as_object_mut().unwrap().remove("patch_size");
        refused(without.to_string().as_bytes(), "nnUNetPlans_3d_fullres: missing field `patch_size`");

        fs::remove_file(&path).unwrap();
        assert!(Plans::load(&path).unwrap_err().to_string().contains("nnUNetPlans.json: No such file"));
    }

    #[test]
    fn contradictory_configurations_are_refused() {
        let refused = |key: &str, value: Value, defect: &str| {
            let mut plans = serde_json::to_value(planned(&[]).unwrap()).unwrap();
            plans["configurations"]["3d_fullres"][key] = value;
            let plans: Plans = serde_json::from_value(plans).unwrap();
            for name in ["3d_fullres", "3d_cascade_fullres"] {
                let message = plans.configuration(name).unwrap_err().to_string();
                assert!(message.contains(name) && message.contains(defect), "{message}");
            }
            assert!(plans.configuration("2d").is_ok());
        };
        refused("patch_size", json!([0, 16, 16]), "patch_size [0, 16, 16]");
        refused("patch_size", json!(vec![16; 4]), "patch_size [16, 16, 16, 16]");
        refused("spacing", json!([1.0, 1.0]), "spacing [1.0, 1.0] must be 3");
        refused("batch_size", json!(0), "batch_size");
        refused("use_mask_for_norm", json!([true]), "2 normalization_schemes but 1");
        refused(
            "resampling_fn_seg",
            json!("resample_torch_fornnunet"),
            "\"resample_torch_fornnunet\" is not supported",
        );
    }

    #[test]
    fn inheritance_overrides_follows_chains_and_refuses_cycles() {
        let mut plans = serde_json::to_value(planned(&[]).unwrap()).unwrap();
        plans["configurations"]["small"] =
            json!({"inherits_from": "3d_fullres", "batch_size": 3, "patch_size": [64, 64, 64]});
        plans["configurations"]["smaller"] = json!({"inherits_from": "small", "batch_size": 5});
        plans["configurations"]["orphan"] = json!({"inherits_from": "nobody"});
        plans["configurations"]["chicken"] = json!({"inherits_from": "egg"});
        plans["configurations"]["egg"] = json!({"inherits_from": "chicken"});
        let plans: Plans = serde_json::from_value(plans).unwrap();
        let smaller = plans.configuration("smaller").unwrap();
        assert_eq!((smaller.batch_size, smaller.patch_size3()), (5, [64, 64, 64]));
        assert!(plans.configuration("orphan").unwrap_err().to_string().contains("no configuration \"nobody\""));
        assert!(plans.configuration("egg").unwrap_err().to_string().contains("\"egg\": inherits from itself"));
    }

    /// Errors in edited plans are one line with the file, the configuration and the key.
    #[test]
    fn errors_in_an_edited_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.json");
        let options =
            PlannerOptions { configurations: vec!["2d".into()], ..PlannerOptions::for_planner(Planner::ResEncM) };
        let fingerprint = fingerprint([400, 500, 500], [1.0; 3]);
        let plans = plan::plan("Dataset001_Large", &dataset(), &fingerprint, &options).unwrap();
        let refused = |pointer: &str, value: Value, key: &str, defect: &str| {
            let mut plans = serde_json::to_value(&plans).unwrap();
            *plans["configurations"]["2d"].pointer_mut(pointer).unwrap() = value;
            fs::write(&path, plans.to_string()).unwrap();
            let message = Plans::load(&path).unwrap().configuration("2d").unwrap_err().to_string();
            let place = format!("{}: configuration \"2d\": {key}", path.display());
            assert!(message.starts_with(&place) && message.contains(defect), "{message}");
            assert!(!message.contains('\n'), "{message}");
        };
        let network = |key: &str, value: Value, defect: &str| {
            let key = format!("arch_kwargs.{key}");
            let pointer = format!("/architecture/{}", key.replace('.', "/"));
            refused(&pointer, value, &format!("architecture.{key}"), defect);
        };
        let class = "/architecture/network_class_name";
        let known = "unknown network class my.Transformer; use one of PlainConvUNet, ResidualEncoderUNet";
        refused(class, json!("my.Transformer"), "architecture.network_class_name", known);
        let features = "architecture.arch_kwargs.features_per_stage";
        refused("/architecture/arch_kwargs/n_stages", json!(3), features, "must be 3 numbers");
        network("n_blocks_per_stage", json!([1, 3]), "[1, 3] must be 8 numbers");
        network("n_conv_per_stage_decoder", json!(vec![1; 8]), "must be 7 numbers");
        network("kernel_sizes", json!([3, 3]), "must be 8 lists of 2");
        network("kernel_sizes", json!(4), "must be odd");
        network("strides", json!([[1, 1], 2, 2, 2, 2, 2, 2, 3]), "patch_size [1, 512, 512] is not divisible");
        network("strides", json!([[1, 1], 2, 2, 2, 2, 2, 2, 8]), "single voxel");
        network("features_per_stage", json!(16384), "parameters");
        network("features_per_stage", json!(1e30), "must be a whole number for all");
        refused("/patch_size", json!([100, 128]), "architecture.arch_kwargs.strides", "[1, 100, 128] is not divisible");
        refused("/patch_size", json!([1024, 0]), "patch_size", "");
        refused("/batch_size", json!(1_000_000_000u64), "batch_size 1000000000", "voxels");
        refused("/patch_size", json!([1u64 << 40, 1u64 << 40]), "batch_size", "voxels");
        refused("/data_identifier", json!("../somewhere"), "data_identifier", "name of a folder");
    }

    #[test]
    fn a_given_spacing_is_planned_and_has_its_own_data_identifier() {
        let fingerprint = fingerprint([100, 120, 140], [1.0; 3]);
        let planned = |planner, target_spacing| {
            let options = PlannerOptions { target_spacing, ..PlannerOptions::for_planner(planner) };
            plan::plan("Dataset001", &dataset(), &fingerprint, &options)
        };
        // The coarsest axis comes first, in any order of the axes.
        let plans = planned(Planner::ResEncL, Some([0.5, 2.0, 1.0])).unwrap();
        assert_eq!(plans.transpose_forward, [1, 0, 2]);
        let configuration = plans.configuration("3d_fullres").unwrap();
        assert_eq!(configuration.spacing, [2.0, 0.5, 1.0]);
        assert_eq!(configuration.median_image_size_in_voxels, [60.0, 200.0, 140.0]);
        assert_eq!(configuration.data_identifier, "nnUNetResEncUNetLPlans_3d_fullres");
        let shared = planned(Planner::ResEncL, None).unwrap().configuration("3d_fullres").unwrap();
        assert_eq!(shared.data_identifier, "nnUNetPlans_3d_fullres");
        let error = planned(Planner::Default, Some([1.0, 0.0, 1.0])).unwrap_err().to_string();
        assert!(error.contains("target spacing [1.0, 0.0, 1.0]"), "{error}");
    }
}
