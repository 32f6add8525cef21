//! Cases partitioned over real MPI processes: preprocessing, the evaluation of a run, prediction.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use nnunet_dist::work::WorkDir;

use crate::job;
use crate::job::Job;
use crate::work::{CONFIGURATION, Workshop, program};

#[test]
fn three_processes_preprocess_to_the_same_files_as_one() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let expected = contents(&shop.store());
    let work = shop.copy("three");
    let store = WorkDir::preprocessed(&work, &format!("nnUNetPlans_{CONFIGURATION}"));
    fs::remove_dir_all(&store).unwrap();
    let job = run(launcher, 3, &preprocess(&work));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    assert_eq!(job.output.matches("3d_fullres: 5 cases in ").count(), 1, "{}", job.output);
    assert!(contents(&store) == expected);
}

#[test]
fn a_case_that_fails_on_one_process_ends_all_processes() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let image = fs::read_dir(shop.path("dataset/imagesTr")).unwrap().next().unwrap().unwrap().path();
    fs::write(&image, "no image").unwrap();
    let job = run(launcher, 2, &preprocess(&shop.work));
    assert_eq!(job.status.code(), Some(3), "{}", job.output);
    let case = image.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().trim_end_matches("_0000");
    job.says(case);
    assert_eq!(job.output.matches("error: ").count(), 1, "{}", job.output);
}

#[test]
fn two_processes_evaluate_and_predict_as_one() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    // All five cases are held out, so that two processes share the work.
    let [one, two] = ["one", "two"].map(|name| shop.run_dir(name));
    let train = |run: &nnunet_dist::work::RunDir, batch: &str| {
        let mut command = program();
        command.args(["train", "-c", CONFIGURATION, "-f", "all", "-w"]).arg(shop.work.root()).arg("--run-dir");
        command.arg(run.root()).args(["--epochs", "1", "--iters-per-epoch", "2", "--val-iters", "1"]);
        command.args(["--batch-size", batch, "--lr", "1e-12"]);
        command
    };
    let output = train(&one, "2").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let job = run(launcher, 2, &train(&two, "1"));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    let summary = |run: &nnunet_dist::work::RunDir| {
        let text = fs::read_to_string(run.validation().join("summary.json")).unwrap();
        text.replace(run.root().to_str().unwrap(), "RUN")
    };
    assert_eq!(summary(&one), summary(&two));

    let images = shop.path("dataset/imagesTr");
    let predict = |output: &Path| {
        let mut command = program();
        command.args(["predict", "--no-tta", "-r"]).arg(one.root()).arg("-i").arg(&images).arg("-o").arg(output);
        command
    };
    let [alone, together] = ["alone", "together"].map(|name| shop.path(name));
    assert!(predict(&alone).output().unwrap().status.success());
    let job = run(launcher, 2, &predict(&together));
    assert!(job.status.success(), "{}\n{}", job.status, job.output);
    assert_eq!(job.output.matches("5 cases in ").count(), 1, "{}", job.output);
    assert!(contents(&alone) == contents(&together));

    // A case that cannot be read does not stop the others, and is reported once.
    let broken = fs::read_dir(&images).unwrap().next().unwrap().unwrap().path();
    fs::write(&broken, "no image").unwrap();
    fs::remove_dir_all(&together).unwrap();
    let job = run(launcher, 2, &predict(&together));
    assert_eq!(job.status.code(), Some(3), "{}", job.output);
    job.says("1 of 5 cases failed: ");
    assert_eq!(job.output.matches("error: ").count(), 1, "{}", job.output);
    assert_eq!(contents(&together).keys().filter(|name| name.ends_with(".nii.gz")).count(), 4);
}

fn preprocess(work: &WorkDir) -> Command {
    let mut command = program();
    command.args(["preprocess", "-c", CONFIGURATION, "-w"]).arg(work.root());
    command
}

fn run(launcher: &str, processes: usize, command: &Command) -> Job {
    job::observe(job::in_parallel(launcher, processes, &[], command))
}

/// All files of a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
    });
    files.collect()
}
