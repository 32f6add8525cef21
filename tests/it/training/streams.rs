//! Standard output and standard error that cannot be written, and the format of the log.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::work::{Workshop, program};

/// A device that is always full.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// One of the images of a dataset.
fn image(shop: &Workshop) -> PathBuf {
    fs::read_dir(shop.dataset().join("imagesTr")).unwrap().next().unwrap().unwrap().path()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_closed_pipe_is_no_error() {
    let shop = Workshop::new();
    let image = image(&shop);
    for flags in [&["--json"][..], &[]] {
        let mut command = program();
        command.arg("inspect").args(flags).args([&image; 3]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn a_full_standard_output_is_a_temporary_failure() {
    let shop = Workshop::new();
    let image = image(&shop);
    let output = program().arg("inspect").arg(image).stdout(full()).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(stderr.starts_with("error: standard output: No space left") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn a_training_goes_on_without_its_output_and_keeps_its_log() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let status = shop.train(&run).stdout(full()).stderr(full()).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(run.validation().join("summary.json").is_file());
    let log = fs::read_to_string(run.text_log()).unwrap();
    assert!(log.contains("fold 0: 4 training and 1 validation cases"), "{log}");
    assert!(log.contains("WARN standard output: No space left"), "{log}");
    assert!(!log.contains('\u{1b}'), "no colors: {log:?}");
}

#[test]
fn log_lines_have_times_or_are_json() {
    let shop = Workshop::new();
    let train = |flags: &[&str]| -> Output {
        let mut command = shop.train(&shop.run_dir("run"));
        command.args(["--epochs", "1", "--resume=auto"]).args(flags).output().unwrap()
    };
    let stderr = text(&train(&[]).stderr);
    let line = stderr.lines().find(|line| line.contains("training and")).unwrap();
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z'), "{line}");
    assert!(rest.trim_start().starts_with("INFO fold 0"), "{line}");

    let stderr = text(&train(&["--log-format", "json"]).stderr);
    let lines: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fold = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains("training and")));
    assert_eq!(fold.unwrap()["level"], "INFO", "{stderr}");
}

/// The error would scroll out of sight above the settings.
#[test]
fn errors_come_without_the_settings() {
    let shop = Workshop::new();
    fs::remove_file(shop.work.splits()).unwrap();
    let output = shop.train(&shop.run_dir("run")).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
}
