//! A run that version 0.1 of the program has made before its flags and keys were renamed (commit 9fbfd34) still works.
//!
//! `tests/fixtures/run_0_1` has its run directory after two epochs, the files of its work folder, its settings and the log of
//! two more epochs by the same program. The raw dataset is the phantom of seed 7, which is generated here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nnunet_dist::phantom::PhantomOptions;
use nnunet_dist::work::{Source, WorkDir};
use serde_json::Value;
use tempfile::TempDir;

use crate::work::program;

/// A copy of the old run, its work folder and its dataset.
struct OldRun {
    folder: TempDir,
}

impl OldRun {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run_0_1");
        copy(&fixture, folder.path());
        let old = Self { folder };
        let phantoms = PhantomOptions { train_cases: 5, test_cases: 0, shape: [20, 24, 20], seed: 7 };
        phantoms.generate(&old.path("raw")).unwrap();
        Source::new(&old.path("raw")).unwrap().save(&WorkDir::new(old.path("work"))).unwrap();
        succeed(program().args(["preprocess", "-c", "3d_fullres", "-w"]).arg(old.path("work")));
        old
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self) -> Command {
        let mut command = program();
        command.args(["train", "-c", "3d_fullres", "-f", "0", "-w"]).arg(self.path("work"));
        command.arg("--config").arg(self.path("settings.toml")).arg("--run-dir").arg(self.path("run"));
        command
    }

    fn log(&self) -> Vec<Value> {
        records(&self.path("run/log.jsonl"))
    }
}

fn records(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, copied) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        match kind.is_symlink() {
            true => symlink(fs::read_link(&path).unwrap(), copied).unwrap(),
            false if kind.is_dir() => copy(&path, &copied),
            false => drop(fs::copy(&path, &copied).unwrap()),
        }
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn an_old_run_resumes_where_it_stopped() {
    let old = OldRun::new();
    let before = old.log();
    succeed(old.train().args(["--resume", "--epochs", "4"]));
    let after = old.log();
    assert_eq!(after.len(), 4);
    assert_eq!(after[..2], before[..]);
    for (found, expected) in after[2..].iter().zip(records(&old.path("resumed.jsonl"))) {
        for key in ["train_loss", "val_loss", "lr"] {
            let (found, expected) = (found[key].as_f64().unwrap(), expected[key].as_f64().unwrap());
            // Processors differ in the order of their sums.
            assert!((found - expected).abs() < 2e-3, "{key}: {found} instead of {expected}");
        }
    }
}

#[test]
fn an_old_checkpoint_predicts() {
    let old = OldRun::new();
    let images = old.path("raw/imagesTr");
    succeed(
        program().arg("predict").arg("-r").arg(old.path("run")).arg("-i").arg(&images).arg("-o").arg(old.path("out")),
    );
    let maps = fs::read_dir(old.path("out")).unwrap().map(Result::unwrap);
    let maps = maps.filter(|entry| entry.file_name().to_string_lossy().ends_with(".nii.gz"));
    assert_eq!(maps.count(), 5);
}

#[test]
fn status_and_report_read_an_old_run() {
    let old = OldRun::new();
    let output = succeed(program().arg("status").arg(old.path("run")));
    assert!(String::from_utf8_lossy(&output.stdout).contains("finished"), "{output:?}");
    // Dumps of steps with a NaN loss were in a folder of another name.
    let dump = old.path("run/incidents/step_0000000003");
    fs::create_dir_all(&dump).unwrap();
    let step = r#"{"epoch": 0, "iteration": 2, "loss": null, "gradient_norm": null, "lr": 0.01, "later_steps": 0,
        "cases": ["a_case_with_nan"]}"#;
    fs::write(dump.join("step.json"), step).unwrap();
    succeed(program().arg("report").arg(old.path("run")).arg("-o").arg(old.path("report.html")));
    let report = fs::read_to_string(old.path("report.html")).unwrap();
    assert!(report.contains("<html") && report.contains("a_case_with_nan"));
}
