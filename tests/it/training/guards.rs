//! Nothing that a user owns is replaced: finished and running trainings, inputs, raw datasets, preprocessed cases.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::image::{LabelMap, read_labels, write_labels};
use serde_json::{Value, json};

use crate::work::{Workshop, program, tensors_of};

/// Runs a command that must be refused with exit code 3 and one line.
#[track_caller]
fn refused(command: &mut Command, part: &str) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let error = String::from_utf8_lossy(&stderr).into_owned();
    let last = error.lines().last().unwrap_or_default();
    assert!(status.code() == Some(3) && last.starts_with("error: ") && last.contains(part), "{status}: {error}");
    last.to_owned()
}

#[track_caller]
fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// All files below a folder with their contents.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut found, mut left) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = left.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() && !path.is_symlink() {
                true => left.push(path),
                false => found.push((path.clone(), fs::read(path).unwrap_or_default())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_finished_run_is_kept_until_asked() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    succeed(&mut shop.train(&run));
    let before = contents(run.root());
    let error = refused(&mut shop.train(&run), "holds a run (trained, 3 of 3 epochs, Dice 0.");
    assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");
    assert_eq!(contents(run.root()), before);
    succeed(shop.train(&run).arg("--resume"));
    let weights = tensors_of(&run.checkpoint_latest());
    succeed(shop.train(&run).args(["--overwrite", "--seed", "5"]));
    assert!(tensors_of(&run.checkpoint_latest()) != weights);
    assert!(tensors_of(&shop.run_dir("run.1").checkpoint_latest()) == weights);
    let usage = shop.train(&shop.run_dir("other")).arg("--val-best").output().unwrap();
    assert_eq!(usage.status.code(), Some(2), "--val-best without --val");
}

#[test]
fn of_two_trainings_in_one_directory_the_second_ends() {
    let shop = Workshop::new();
    let [run, alone] = ["run", "alone"].map(|name| shop.run_dir(name));
    let train = |run, seed: &str| {
        let mut command = shop.train(run);
        command.args(["--iters-per-epoch", "40", "--resume=auto", "--seed", seed]).stdout(Stdio::null());
        command
    };
    let mut first = train(&run, "1").stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !run.status().exists() {
        assert!(first.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(2));
    }
    refused(&mut train(&run, "2"), &format!("in use by process {} on ", first.id()));
    assert!(first.wait().unwrap().success());
    succeed(&mut train(&alone, "1"));
    assert!(tensors_of(&run.checkpoint_latest()) == tensors_of(&alone.checkpoint_latest()), "weights of one seed only");
}

#[test]
fn training_notices_what_has_changed_since_preprocessing() {
    let shop = Workshop::new();
    let run = |name: &str| shop.train_on(&shop.work, &shop.run_dir(name));
    // On all cases.
    let run_all = |name: &str| {
        let mut command = program();
        command.args(["train", "-c", "3d_fullres", "-f", "all", "-w"]).arg(shop.work.root()).arg("--config");
        command.arg(shop.settings()).arg("--run-dir").arg(shop.path(name));
        command
    };
    let labels = fs::read_dir(shop.dataset().join("labelsTr")).unwrap().next().unwrap().unwrap().path();
    // The same contents with another time.
    let original = fs::read(&labels).unwrap();
    fs::write(&labels, &original).unwrap();
    succeed(run("touched").args(["--epochs", "1"]));
    let map = read_labels(&labels).unwrap();
    write_labels(&labels, &LabelMap { data: map.data.mapv(|label| 1 - label.min(1)), geometry: map.geometry }).unwrap();
    let name = labels.file_name().unwrap().to_str().unwrap();
    let error = refused(&mut run("labels"), &format!("{name} changed after preprocessing"));
    assert!(error.contains("preprocess again"), "{error}");
    // The same after the dataset was moved.
    let (moved, source) = (shop.path("moved"), shop.work.source());
    let before = fs::read_to_string(&source).unwrap();
    fs::rename(shop.dataset(), &moved).unwrap();
    fs::write(&source, format!("dataset = {moved:?}\n")).unwrap();
    refused(&mut run("moved_run"), &format!("{name} changed after preprocessing"));
    fs::rename(&moved, shop.dataset()).unwrap();
    fs::write(&source, before).unwrap();
    fs::write(&labels, &original).unwrap();
    let plans = fs::read(shop.work.plans()).unwrap();
    shop.edit_plans(|configuration| configuration["normalization_schemes"] = json!(["CTNormalization"]));
    refused(&mut run("plans"), "was preprocessed with other settings: normalization_schemes; preprocess again");
    fs::write(shop.work.plans(), plans).unwrap();
    let array = fs::read_dir(shop.store()).unwrap().map(|entry| entry.unwrap().path());
    let array = array.filter(|path| path.to_string_lossy().ends_with("_seg.npy")).min().unwrap();
    let whole = fs::read(&array).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&array, damaged).unwrap();
    refused(&mut run_all("damaged"), "_seg.npy: is damaged: its checksum differs");
    fs::write(&array, whole).unwrap();
    let case = fs::read_dir(shop.store()).unwrap().map(|entry| entry.unwrap().path());
    let case = case.filter(|path| path.extension().is_some_and(|ending| ending == "json")).min().unwrap();
    fs::remove_file(case).unwrap();
    refused(&mut run_all("case"), "is missing, of 5 preprocessed cases; preprocess again");
    succeed(program().args(["preprocess", "-c", "3d_fullres", "-w"]).arg(shop.work.root()));
    succeed(run("again").args(["--epochs", "1"]));
}

#[test]
fn outputs_that_are_inputs_are_refused() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    succeed(shop.train(&run).args(["--epochs", "1", "--npz"]));
    let dataset = shop.dataset();
    let validation = run.validation();
    let link = shop.path("link");
    symlink(dataset.join("labelsTr"), &link).unwrap();
    let work_before = contents(shop.work.root());
    let before = contents(&dataset);
    let predict = |images: &Path, output: &Path| {
        let mut command = program();
        command.arg("predict").arg("-r").arg(run.root()).arg("-i").arg(images).arg("-o").arg(output).arg("--no-tta");
        command
    };
    let images = dataset.join("imagesTr");
    // Images named as their label maps would be.
    let plain = shop.path("plain");
    fs::create_dir(&plain).unwrap();
    for path in fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&path, plain.join(path.file_name().unwrap().to_str().unwrap().replace("_0000", ""))).unwrap();
    }
    let first = fs::read_dir(&plain).unwrap().next().unwrap().unwrap().path();
    let mut one = predict(&first, &plain);
    let output = one.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read_dir(&plain).unwrap().count() == 5);
    for output in [dataset.join("labelsTr"), link.clone(), dataset.clone()] {
        refused(&mut predict(&images, &output), "choose another output");
    }
    refused(predict(&images, &dataset.join("labelsTr")).arg("--continue"), "is a folder of a raw dataset");
    refused(&mut predict(&images, run.root()), "is a run directory");
    refused(program().arg("plan").arg("-d").arg(&dataset).arg("-w").arg(&dataset), "holds a raw dataset");
    refused(program().arg("plan").arg("-d").arg(&dataset).arg("-w").arg(shop.path("link/..")), "holds a raw dataset");
    let ensemble = |output: &Path| {
        let mut command = program();
        command.arg("ensemble").arg("-i").arg(&validation).arg(&validation).arg("-o").arg(output);
        command.arg("--dataset-json").arg(shop.work.dataset_json());
        command
    };
    refused(&mut ensemble(&validation), "would replace an input");
    let label = fs::read_dir(dataset.join("labelsTr")).unwrap().next().unwrap().unwrap().path();
    let evaluate = |output: &Path| {
        let mut command = program();
        command.arg("evaluate").arg("-p").arg(&validation).arg("-g").arg(dataset.join("labelsTr"));
        command.args(["--chill", "-o"]).arg(output);
        command
    };
    refused(&mut evaluate(&label), "would replace an input");
    refused(&mut evaluate(&dataset.join("dataset.json")), "is not a summary");
    refused(
        program().arg("convert").arg(&label).arg(&label).args(["--labels", "--overwrite"]),
        "would replace an input",
    );
    refused(program().arg("inspect").arg(&label).arg("--montage").arg(&label), "would replace an input");
    let config = run.config();
    refused(program().arg("report").arg(run.root()).arg("-o").arg(&config), "is not an HTML file");
    refused(program().arg("export").arg("-r").arg(run.root()).args(["--to", "onnx", "-o"]).arg(&config), "an input");
    // The network of an exported model would replace that of the run.
    let exported = shop.path("exported");
    succeed(program().arg("export").arg("-r").arg(run.root()).args(["--to", "pth", "-o"]).arg(&exported));
    let model = exported.join("fold_0/checkpoint_final.pth");
    refused(program().arg("import").arg("-i").arg(model).arg("-o").arg(run.root()), "holds a trained run");
    assert!(contents(&dataset) == before && contents(shop.work.root()) == work_before);

    // A label map of another shape is not a result of the image.
    let out = shop.path("out");
    succeed(&mut predict(&images, &out));
    let expected = contents(&out);
    let (path, _) = expected.iter().find(|(path, _)| path.to_string_lossy().ends_with(".nii.gz")).unwrap();
    let map = read_labels(path).unwrap();
    let data = map.data.slice(ndarray::s![..5, ..5, ..5]).to_owned();
    write_labels(path, &LabelMap { data, geometry: map.geometry }).unwrap();
    succeed(predict(&images, &out).arg("--continue"));
    assert!(contents(&out) == expected);
}

#[test]
fn names_in_files_do_not_lead_elsewhere() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    succeed(shop.train(&run).args(["--epochs", "1"]));
    let edit = |path: &Path, edit: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    let description = shop.dataset().join("dataset.json");
    let original = fs::read(&description).unwrap();
    let images = fs::read_dir(shop.dataset().join("imagesTr")).unwrap().map(|entry| entry.unwrap().path());
    let image = images.min().unwrap();
    let label =
        fs::read_dir(shop.dataset().join("labelsTr")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    edit(&description, &|dataset| {
        dataset["dataset"] = json!({"../../../evil": {"images": [image], "label": label}});
        dataset["numTraining"] = json!(1);
    });
    let mut plan = program();
    plan.arg("plan").arg("-d").arg(shop.dataset()).arg("-w").arg(shop.path("planned"));
    refused(&mut plan, "\"../../../evil\" is a path, but must be a name");
    fs::write(&description, original).unwrap();
    edit(&shop.work.splits(), &|splits| splits[0]["val"] = json!(["/tmp/evil"]));
    refused(&mut shop.train(&shop.run_dir("split")), "\"/tmp/evil\" is a path");
    edit(&shop.work.plans(), &|plans| {
        plans["configurations"]["3d_fullres"]["data_identifier"] = json!("../../evil");
    });
    let mut preprocess = program();
    refused(
        preprocess.args(["preprocess", "-c", "3d_fullres", "-w"]).arg(shop.work.root()),
        "must be the name of a folder",
    );
}
