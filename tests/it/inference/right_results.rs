//! Wrong results are errors or warnings: geometries that differ, images beyond any memory, NaN in probabilities, and
//! label maps that every reader places on their image.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use ndarray::{Array3, Array4};
use nnunet_dist::dataset::DatasetJson;
use nnunet_dist::image::{Geometry, LabelMap, Volume, read_header, write_labels, write_volume};
use nnunet_dist::infer::save_probabilities;
use nnunet_dist::model::ModelDescription;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Server, multipart};
use crate::tiny_model::{image, model, write_checkpoint};

/// A checkpoint, and folders for images and results.
struct Desk(TempDir);

impl Desk {
    fn new(edit: impl FnOnce(&mut Value, &mut DatasetJson)) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        write_checkpoint(&desk.path("checkpoint"), &model("3d_fullres", edit), 5);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn add(&self, name: &str, geometry: Geometry) {
        let volume = image([18, 20, 18], 0, geometry);
        write_volume(&self.path("images").join(name), &volume).unwrap();
    }

    fn predict(&self) -> Command {
        let mut command = Command::cargo_bin("nnunet-dist").unwrap();
        command.env_remove("RUST_LOG").args(["predict", "--no-tta", "-r"]).arg(self.path("checkpoint"));
        command.arg("-i").arg(self.path("images")).arg("-o").arg(self.path("output"));
        command
    }

    fn has_result(&self, case: &str) -> bool {
        self.path(&format!("output/{case}.nii.gz")).exists()
    }
}

/// Geometries that differ in one property from the default.
fn others() -> [(&'static str, Geometry); 3] {
    let plain = Geometry::default;
    [
        ("spacing", Geometry { spacing: [3.0, 1.0, 1.0], ..plain() }),
        ("origin", Geometry { origin: [0.0, 5.0, 0.0], ..plain() }),
        ("direction", Geometry { direction: [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], ..plain() }),
    ]
}

#[test]
fn channels_at_different_places_fail_by_name_and_other_cases_are_predicted() {
    for (property, other) in others() {
        let desk = Desk::new(|plans, dataset| {
            dataset.channel_names.insert("1".into(), "T2".into());
            let configuration = &mut plans["configurations"]["3d_fullres"];
            configuration["normalization_schemes"] = json!(["ZScoreNormalization", "ZScoreNormalization"]);
            configuration["use_mask_for_norm"] = json!([false, false]);
        });
        for name in ["a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"] {
            desk.add(name, Geometry::default());
        }
        desk.add("a_0001.nii.gz", other);
        let named = contains("1 of 2 cases failed").and(contains("a_0001.nii.gz")).and(contains(property));
        desk.predict().assert().code(3).stderr(named);
        assert!(desk.has_result("b") && !desk.has_result("a"), "{property}");
    }
}

#[test]
fn an_image_beyond_any_memory_is_named_and_the_others_are_predicted() {
    let desk = Desk::new(|_, _| {});
    desk.add("a_0000.nii.gz", Geometry::default());
    // Thousands of GiB at the spacing of the network.
    desk.add("b_0000.nii.gz", Geometry { spacing: [1000.0; 3], ..Geometry::default() });
    desk.add("c_0000.nii.gz", Geometry::default());
    let one_line = contains("error: 1 of 3 cases failed: b: ").and(contains("voxels (z, y, x) at the target spacing"));
    desk.predict().assert().code(3).stderr(one_line.and(contains("of this machine")).and(contains("panic").not()));
    assert!(desk.has_result("a") && desk.has_result("c") && !desk.has_result("b"));
}

#[test]
fn images_far_outside_the_training_images_get_a_warning() {
    let desk = Desk::new(|_, _| {});
    desk.add("near_0000.nii.gz", Geometry { spacing: [1.2, 1.0, 0.8], ..Geometry::default() });
    desk.add("coarse_0000.nii.gz", Geometry { spacing: [9.0, 1.0, 1.0], ..Geometry::default() });
    let direction = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]];
    desk.add("turned_0000.nii.gz", Geometry { direction, ..Geometry::default() });
    let coarse = contains("WARN case coarse: spacing");
    let turned = contains("WARN case turned: orientation SPL");
    desk.predict().assert().success().stderr(coarse.and(turned).and(contains("case near:").not()));
}

#[test]
fn files_that_are_left_out_are_named() {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new(|_, _| {});
    desk.add("a_0000.nii.gz", Geometry::default());
    for name in ["b_0000.nii", "c_0000.NII.GZ"] {
        fs::copy(desk.path("images/a_0000.nii.gz"), desk.path("images").join(name)).unwrap();
    }
    let latin = std::ffi::OsStr::from_bytes(b"caf\xe9_0000.nii.gz");
    fs::copy(desk.path("images/a_0000.nii.gz"), desk.path("images").join(latin)).unwrap();
    let named = contains("left out b_0000.nii, c_0000.NII.GZ").and(contains(r"caf\xe9_0000.nii.gz"));
    desk.predict().assert().success().stderr(named);
}

/// Overwrites forms and codes of an uncompressed NIfTI-1 file: the qform is elsewhere than the sform.
fn move_qform(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    bytes[252..256].copy_from_slice(&[1i16, 2].map(i16::to_le_bytes).concat());
    bytes[268..280].copy_from_slice(&[-5f32, -6.0, 7.0].map(f32::to_le_bytes).concat());
    fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn predictions_repeat_the_forms_of_their_image() {
    let desk = Desk::new(|_, dataset| dataset.file_ending = ".nii".into());
    desk.add("a_0000.nii", Geometry { origin: [1.0, 2.0, 3.0], ..Geometry::default() });
    let image = move_qform(&desk.path("images/a_0000.nii"));
    desk.predict().assert().success();
    let labels = fs::read(desk.path("output/a.nii")).unwrap();
    for fields in [76..92, 123..124, 252..328] {
        assert_eq!(labels[fields.clone()], image[fields.clone()], "bytes {fields:?}");
    }
    let [one, other] =
        ["images/a_0000.nii", "output/a.nii"].map(|name| read_header(&desk.path(name)).unwrap().geometry);
    assert_eq!(one, other);
}

#[test]
fn evaluation_refuses_another_geometry_unless_told_otherwise() {
    for (property, other) in others() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, geometry: Geometry| {
            let data = Array3::from_shape_fn((6, 7, 8), |(z, y, x)| i16::from(z > 1 && y > 2 && x > 3));
            write_labels(&folder.path().join(name), &LabelMap { data, geometry }).unwrap();
        };
        write("truth/a.nii.gz", Geometry::default());
        write("predicted/a.nii.gz", other);
        let evaluate = |flags: &[&str]| {
            let mut command = Command::cargo_bin("nnunet-dist").unwrap();
            command.env_remove("RUST_LOG").args(["evaluate", "--metrics", "hd95"]).args(flags);
            command.arg("-p").arg(folder.path().join("predicted")).arg("-g").arg(folder.path().join("truth"));
            command.assert()
        };
        let named = || contains("predicted/a.nii.gz: ").and(contains(property)).and(contains("truth/a.nii.gz"));
        evaluate(&[]).code(3).stderr(named().and(contains("--allow-other-geometry")));
        assert!(!folder.path().join("predicted/summary.json").exists());
        evaluate(&["--allow-other-geometry"]).success().stderr(named()).stdout(contains("mean Dice 1.0000"));
    }
}

/// nnU-Net's SimpleITK reader takes the qform, so its predictions are there.
#[test]
fn a_prediction_at_the_qform_of_its_reference_is_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, origin: [f64; 3]| {
        let data = Array3::from_shape_fn((6, 7, 8), |(z, y, x)| i16::from(z > 1 && y > 2 && x > 3));
        let geometry = Geometry { origin, ..Geometry::default() };
        write_labels(&folder.path().join(name), &LabelMap { data, geometry }).unwrap();
    };
    write("truth/a.nii", [0.0; 3]);
    move_qform(&folder.path().join("truth/a.nii"));
    let evaluate = || {
        let mut command = Command::cargo_bin("nnunet-dist").unwrap();
        command.env_remove("RUST_LOG").arg("evaluate");
        command.arg("-p").arg(folder.path().join("predicted")).arg("-g").arg(folder.path().join("truth"));
        command.assert()
    };
    write("predicted/a.nii", [5.0, 6.0, 7.0]);
    evaluate().success().stdout(contains("mean Dice 1.0000"));
    write("predicted/a.nii", [5.0, 6.0, 17.0]);
    evaluate().code(3).stderr(contains("origin"));
}

/// Folders with probabilities and label maps of the cases `a` and `b`.
fn members(edit: impl Fn(&str, &str, &mut Array4<f32>, &mut Geometry)) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for folder in ["one", "other"] {
        for case in ["a", "b"] {
            let mut probabilities = Array4::from_elem((2, 3, 4, 5), 0.5f32);
            let mut geometry = Geometry::default();
            edit(folder, case, &mut probabilities, &mut geometry);
            let path = root.path().join(folder);
            fs::create_dir_all(&path).unwrap();
            save_probabilities(&path.join(format!("{case}.npz")), &probabilities).unwrap();
            let labels = LabelMap { data: Array3::zeros((3, 4, 5)), geometry };
            write_labels(&path.join(format!("{case}.nii")), &labels).unwrap();
        }
        let json = json!({"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 1,
            "file_ending": ".nii"});
        fs::write(root.path().join(folder).join("dataset.json"), json.to_string()).unwrap();
    }
    root
}

fn ensemble(root: &TempDir) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("nnunet-dist").unwrap();
    let path = |name: &str| root.path().join(name);
    command.env_remove("RUST_LOG").arg("ensemble").arg("-i").args([path("one"), path("other")]);
    command.arg("-o").arg(path("out")).assert()
}

#[test]
fn an_ensemble_refuses_nan_and_other_geometries_and_writes_the_other_cases() {
    let with_nan = members(|folder, case, probabilities, _| {
        if (folder, case) == ("other", "a") {
            probabilities[[1, 0, 0, 0]] = f32::NAN;
            probabilities[[1, 2, 0, 0]] = f32::INFINITY;
        }
    });
    let named = contains("1 of 2 cases failed: a: ").and(contains("other/a.npz")).and(contains("in 2 voxels"));
    ensemble(&with_nan).code(3).stderr(named);
    assert!(with_nan.path().join("out/b.nii").exists() && !with_nan.path().join("out/a.nii").exists());
    for (property, geometry) in others() {
        let moved = members(|folder, case, _, place| {
            if (folder, case) == ("other", "b") {
                *place = geometry.clone();
            }
        });
        ensemble(&moved).code(3).stderr(contains("other/b.nii").and(contains(property)));
        assert!(moved.path().join("out/a.nii").exists() && !moved.path().join("out/b.nii").exists());
    }
    ensemble(&members(|_, _, _, _| {})).success();
}

#[test]
fn a_missing_onednn_is_one_warning_with_its_remedy() {
    let desk = Desk::new(|_, _| {});
    desk.add("a_0000.nii.gz", Geometry::default());
    let run = desk.predict().env("NNUNET_DIST_ONEDNN", "0").assert().success();
    let stderr = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("oneDNN")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("NNUNET_DIST_ONEDNN"), "{stderr}");
    assert!(stderr.lines().next().unwrap().contains("oneDNN"), "the warning comes first: {stderr}");
}

#[test]
fn a_case_that_fails_in_the_first_stage_of_a_cascade_does_not_stop_the_others() {
    let desk = Desk(tempfile::tempdir().unwrap());
    let cascade = model("3d_fullres", |plans, _| {
        let configurations = &mut plans["configurations"];
        configurations["3d_lowres"] = json!({"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"});
        configurations["3d_cascade_fullres"] = json!({"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"});
    });
    for (name, configuration) in [("first", "3d_lowres"), ("checkpoint", "3d_cascade_fullres")] {
        let model = ModelDescription { configuration: configuration.into(), ..cascade.clone() };
        write_checkpoint(&desk.path(name), &model, 5);
    }
    for name in ["a_0000.nii.gz", "c_0000.nii.gz"] {
        desk.add(name, Geometry::default());
    }
    fs::write(desk.path("images/b_0000.nii.gz"), "not an image").unwrap();
    let named = contains("error: 1 of 3 cases failed: b: ").and(contains("b_0000.nii.gz"));
    desk.predict().arg("--prev-stage").arg(desk.path("first")).assert().code(3).stderr(named);
    assert!(desk.has_result("a") && desk.has_result("c") && !desk.has_result("b"));
}

#[test]
fn the_server_refuses_and_reports_the_same() {
    let desk = Desk::new(|plans, dataset| {
        dataset.channel_names.insert("1".into(), "T2".into());
        let configuration = &mut plans["configurations"]["3d_fullres"];
        configuration["normalization_schemes"] = json!(["ZScoreNormalization", "ZScoreNormalization"]);
        configuration["use_mask_for_norm"] = json!([false, false]);
    });
    let server = Server::start(&desk.path("checkpoint"), &[]);
    let file = |geometry: Geometry| {
        let path = desk.path("image.nii.gz");
        write_volume(&path, &image([18, 20, 18], 0, geometry)).unwrap();
        fs::read(path).unwrap()
    };
    let plain = file(Geometry::default());
    let post = |second: &[u8]| {
        server.post("/predict", "multipart/form-data; boundary=b", &multipart(&[("0", &plain[..]), ("1", second)]))
    };
    // Zeros after a gzip member are padding.
    assert_eq!(post(&[&plain[..], &[0; 700]].concat()).status, 200);
    for (property, geometry) in others() {
        post(&file(geometry)).refuses(422, &format!("channel 1.nii: {property}"));
    }
    let help: Value = serde_json::from_slice(&server.get("/").body).unwrap();
    assert!(help.as_object().unwrap().contains_key("onednn"));
    assert_eq!(server.metric("nnunet_onednn"), f64::from(u8::from(!help["onednn"].is_null())));
}

#[test]
fn a_case_list_may_begin_with_a_byte_order_mark() {
    let desk = Desk::new(|_, _| {});
    desk.add("a_0000.nii.gz", Geometry::default());
    for (name, text) in [("cases.json", r#"[["images/a_0000.nii.gz"]]"#), ("cases.txt", "images/a_0000.nii.gz\n")] {
        let list = desk.path(name);
        fs::write(&list, format!("\u{feff}{text}")).unwrap();
        let predict = |list: &Path| {
            let mut command = Command::cargo_bin("nnunet-dist").unwrap();
            command.env_remove("RUST_LOG").args(["predict", "--no-tta", "-r"]).arg(desk.path("checkpoint"));
            command.arg("-i").arg(list).arg("-o").arg(desk.path("output")).assert()
        };
        predict(&list).success();
        let utf16: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_be_bytes).collect();
        fs::write(&list, utf16).unwrap();
        predict(&list).code(3).stderr(contains(name).and(contains("UTF-16")));
    }
}

#[test]
fn a_volume_of_one_plane_is_predicted_by_a_2d_network() {
    let desk = Desk(tempfile::tempdir().unwrap());
    write_checkpoint(&desk.path("checkpoint"), &model("2d", |_, _| {}), 5);
    let Volume { data, geometry } = image([1, 20, 18], 0, Geometry::default());
    let geometry = Geometry { spacing: [999.0, 1.0, 1.0], ..geometry };
    let path = desk.path("images/a_0000.nii.gz");
    write_volume(&path, &Volume { data, geometry }).unwrap();
    desk.predict().assert().success();
    let [image, labels] = [path, desk.path("output/a.nii.gz")].map(|path| read_header(&path).unwrap());
    assert_eq!((image.shape, image.geometry), (labels.shape, labels.geometry));
}
