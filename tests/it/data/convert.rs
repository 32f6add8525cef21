//! `convert` converts images between formats and raw datasets between layouts, and overwrites nothing unless asked to.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use ndarray::{Array3, Array4, Axis, s};
use nnunet_dist::dataset::{Dataset, RawLayout, convert_dataset, validate};
use nnunet_dist::image::{Geometry, LabelMap, Volume, read_labels, read_volume, write_labels, write_volume};
use predicates::str::contains;
use serde_json::{Value, json};

fn program() -> Command {
    let mut command = Command::cargo_bin("nnunet-dist").expect("cargo builds the program before its tests");
    command.env_remove("RUST_LOG").arg("convert");
    command
}

fn image(channels: usize, seed: usize) -> Volume {
    let data =
        Array4::from_shape_fn((channels, 3, 4, 5), |(c, z, y, x)| (1000 * c + 100 * z + 10 * y + x + seed) as f32);
    Volume { data, geometry: Geometry { spacing: [2.0, 0.5, 0.5], ..Geometry::default() } }
}

fn labels() -> LabelMap {
    let data = Array3::from_shape_fn((3, 4, 5), |(z, _, _)| z as i16);
    LabelMap { data, geometry: image(1, 0).geometry }
}

/// A Decathlon dataset with two channels.
fn decathlon(root: &Path) {
    for (case, seed) in [("a", 1), ("b", 2)] {
        write_volume(&root.join(format!("imagesTr/{case}.nii.gz")), &image(2, seed)).unwrap();
        write_labels(&root.join(format!("labelsTr/{case}.nii.gz")), &labels()).unwrap();
    }
    write_volume(&root.join("imagesTs/c.nii.gz"), &image(2, 3)).unwrap();
    let pair =
        |case| json!({"image": format!("./imagesTr/{case}.nii.gz"), "label": format!("./labelsTr/{case}.nii.gz")});
    let description = json!({
        "name": "Example", "licence": "CC0", "tensorImageSize": "4D", "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"}, "numTraining": 2, "numTest": 1,
        "training": [pair("a"), pair("b")], "test": ["./imagesTs/c.nii.gz"]
    });
    fs::write(root.join("dataset.json"), description.to_string()).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_image_goes_through_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_volume(&path("a.nii.gz"), &image(1, 0)).unwrap();
    for (from, to) in
        [("a.nii.gz", "a.mha"), ("a.mha", "a.nrrd"), ("a.nrrd", "a.mhd"), ("a.mhd", "a.tif"), ("a.tif", "a.nii")]
    {
        program().arg(path(from)).arg(path(to)).assert().success().stdout(contains(to));
    }
    let back = read_volume(&path("a.nii")).unwrap();
    assert_eq!((back.data, back.geometry.spacing), (image(1, 0).data, [2.0, 0.5, 0.5]));

    write_labels(&path("l.nrrd"), &labels()).unwrap();
    program().args(["--labels"]).arg(path("l.nrrd")).arg(path("l.nii.gz")).assert().success();
    assert_eq!(read_labels(&path("l.nii.gz")).unwrap().data, labels().data);
    program()
        .args(["--labels"])
        .arg(path("a.mha"))
        .arg(path("l.nii.gz"))
        .assert()
        .code(3)
        .stderr(contains("already exists"));
    program().arg(path("a.mha")).arg(path("a.xyz")).assert().code(3).stderr(contains("a.xyz: unknown file type"));
    program().arg(path("a.mha")).arg(path("a.png")).assert().code(3).stderr(contains("PNG can hold one slice, not 3"));
    program().arg(path("a.mha")).assert().code(2);
    program().args(["--msd", "x"]).assert().code(2);
}

#[test]
fn a_dataset_goes_to_nnunets_layout_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let [msd, v2, back] = ["Task99_Example", "Dataset099_Example", "Task98_Back"].map(|name| folder.path().join(name));
    decathlon(&msd);
    program().arg("--msd").arg(&msd).arg("-o").arg(&v2).assert().success().stdout(contains("2 training and 1 test"));
    assert_eq!(names(&v2.join("imagesTr")), ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"]);
    assert_eq!(names(&v2.join("imagesTs")), ["c_0000.nii.gz", "c_0001.nii.gz"]);
    assert_eq!(fs::read(v2.join("labelsTr/b.nii.gz")).unwrap(), fs::read(msd.join("labelsTr/b.nii.gz")).unwrap());
    let second = read_volume(&v2.join("imagesTr/b_0001.nii.gz")).unwrap();
    assert_eq!(second.data, image(2, 2).data.slice(s![1..2, .., .., ..]));
    assert_eq!(second.geometry.spacing, [2.0, 0.5, 0.5]);
    let description = json_of(&v2.join("dataset.json"));
    assert_eq!(description["channel_names"], json!({"0": "FLAIR", "1": "T1w"}));
    assert_eq!(description["labels"], json!({"background": 0, "edema": 1, "tumour": 2}));
    assert_eq!((&description["file_ending"], &description["licence"]), (&json!(".nii.gz"), &json!("CC0")));
    assert!(["training", "test", "modality"].iter().all(|key| description.get(key).is_none()));
    assert_eq!(validate(&Dataset::open(&v2).unwrap()), [""; 0]);

    program().arg("--to-msd").arg(&v2).arg("-o").arg(&back).assert().success();
    let (first, last) = (json_of(&msd.join("dataset.json")), json_of(&back.join("dataset.json")));
    for key in ["name", "modality", "labels", "numTraining", "numTest", "training", "test", "tensorImageSize"] {
        assert_eq!(first[key], last[key], "{key}");
    }
    assert_eq!(read_volume(&back.join("imagesTr/a.nii.gz")).unwrap().data, image(2, 1).data);
    assert_eq!(read_volume(&back.join("imagesTs/c.nii.gz")).unwrap().data.len_of(Axis(0)), 2);
    assert_eq!(validate(&Dataset::open(&back).unwrap()), [""; 0]);
    // No temporary output remains.
    assert_eq!(names(folder.path()), ["Dataset099_Example", "Task98_Back", "Task99_Example"]);
}

#[test]
fn nothing_is_replaced_unasked_or_partially() {
    let folder = tempfile::tempdir().unwrap();
    let [msd, v2] = ["Task99_Example", "Dataset099_Example"].map(|name| folder.path().join(name));
    decathlon(&msd);
    convert_dataset(&msd, &v2, RawLayout::NnUnet, false).unwrap();
    let error = convert_dataset(&msd, &v2, RawLayout::NnUnet, false).unwrap_err().to_string();
    assert!(error.contains("Dataset099_Example: exists already"), "{error}");
    fs::remove_file(v2.join("imagesTr/a_0000.nii.gz")).unwrap();
    convert_dataset(&msd, &v2, RawLayout::NnUnet, true).unwrap();
    assert!(v2.join("imagesTr/a_0000.nii.gz").is_file());

    let precious = folder.path().join("home");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("thesis.tex"), "").unwrap();
    let error = convert_dataset(&msd, &precious, RawLayout::NnUnet, true).unwrap_err().to_string();
    assert!(error.contains("is not a dataset") && precious.join("thesis.tex").is_file(), "{error}");

    // A case that cannot be read leaves no partial output, and the existing output stays.
    fs::write(msd.join("imagesTr/b.nii.gz"), "broken").unwrap();
    let error = convert_dataset(&msd, &v2, RawLayout::NnUnet, true).unwrap_err().to_string();
    assert!(error.contains("b.nii.gz"), "{error}");
    assert_eq!(names(&v2.join("imagesTr")).len(), 4);
    assert_eq!(names(folder.path()), ["Dataset099_Example", "Task99_Example", "home"]);

    let mut description = json_of(&v2.join("dataset.json"));
    description["labels"]["whole"] = json!([1, 2]);
    description["regions_class_order"] = json!([1, 2, 3]);
    fs::write(v2.join("dataset.json"), description.to_string()).unwrap();
    let error = convert_dataset(&v2, &folder.path().join("t"), RawLayout::Decathlon, false).unwrap_err().to_string();
    assert!(error.contains("whole is a region"), "{error}");
    let mut description = json_of(&v2.join("dataset.json"));
    description["labels"] = json!({"background": 0, "edema": 1});
    description["dataset"] = json!({"../../evil": {"images": [], "label": "x"}});
    fs::write(v2.join("dataset.json"), description.to_string()).unwrap();
    let error = convert_dataset(&v2, &folder.path().join("t"), RawLayout::NnUnet, false).unwrap_err().to_string();
    assert!(error.contains("\"../../evil\" is a path"), "{error}");
}
