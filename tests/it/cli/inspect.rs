//! `inspect` describes a case as text and as JSON, and draws it.

use std::fs::File;
use std::io::BufReader;

use assert_cmd::Command;
use nnunet_dist::phantom::PhantomOptions;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;

fn program() -> Command {
    let mut command = Command::cargo_bin("nnunet-dist").expect("cargo builds the program before its tests");
    command.env_remove("RUST_LOG").arg("inspect");
    command
}

#[test]
fn cases_of_a_dataset_are_described_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    PhantomOptions { train_cases: 2, test_cases: 0, shape: [20, 24, 20], seed: 3 }.generate(folder.path()).unwrap();
    let picture = folder.path().join("cases.png");
    let cases = ["phantom_000", "phantom_001"];
    let text = program().arg("-d").arg(folder.path()).args(cases).arg("--montage").arg(&picture).assert().success();
    text.stdout(contains("orientation  LPS").and(contains("organ")).and(contains("float32")).and(contains("####")));

    let output = program().arg("-d").arg(folder.path()).args(cases).arg("--json").output().unwrap();
    let reports: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (index, report) in reports.as_array().unwrap().iter().enumerate() {
        assert_eq!(report["case"], cases[index]);
        let image = &report["images"][0];
        let voxels: u64 = image["shape"].as_array().unwrap().iter().filter_map(Value::as_u64).product();
        assert_eq!(image["channels"][0]["voxels"].as_u64().unwrap(), voxels);
        let classes = report["labels"]["classes"].as_array().unwrap();
        assert_eq!(classes.iter().map(|class| &class["name"]).collect::<Vec<_>>(), ["organ", "core"]);
        let spacing: f64 = image["spacing"].as_array().unwrap().iter().filter_map(Value::as_f64).product();
        let mut labelled = 0;
        for class in classes {
            let count = class["voxels"].as_u64().unwrap();
            labelled += count;
            assert!(count > 0 && (class["mm3"].as_f64().unwrap() - count as f64 * spacing).abs() < 1e-6);
            assert!((class["ml"].as_f64().unwrap() * 1000.0 - class["mm3"].as_f64().unwrap()).abs() < 1e-6);
        }
        assert_eq!(image["foreground"][0]["voxels"].as_u64().unwrap(), labelled);
    }

    let mut decoder = png::Decoder::new(BufReader::new(File::open(&picture).unwrap()));
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    // The opaque colors of both classes, at their borders and in the legend.
    for color in [1, 2].map(nnunet_dist::inspect::label_color) {
        let count = pixels.as_chunks::<3>().0.iter().filter(|pixel| **pixel == color).count();
        assert!(count > 500, "{color:?}: {count}");
    }
}

#[test]
fn a_wrong_case_or_label_map_is_named() {
    let folder = tempfile::tempdir().unwrap();
    PhantomOptions { train_cases: 2, test_cases: 0, shape: [8, 8, 8], seed: 3 }.generate(folder.path()).unwrap();
    program()
        .arg("-d")
        .arg(folder.path())
        .arg("x")
        .assert()
        .code(3)
        .stderr(contains("has no case x; available: phantom_000"));
    let [a, b] = [0, 1].map(|case| folder.path().join(format!("imagesTr/phantom_00{case}_0000.nii.gz")));
    let label = folder.path().join("labelsTr/phantom_000.nii.gz");
    program().arg(&a).arg("-l").arg(&label).assert().success().stdout(contains("class 1"));
    program().args([&a, &b]).arg("-l").arg(&label).assert().code(3).stderr(contains("--label"));
    program().arg(folder.path().join("missing.nii")).assert().code(3).stderr(contains("missing.nii"));
}
