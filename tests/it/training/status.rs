//! `status` shows the state of runs, read from their files alone.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty, starts_with};
use serde_json::Value;

use crate::written_run::{EPOCHS, write_run};

fn status(run: &Path) -> Command {
    let mut command = Command::cargo_bin("nnunet-dist").expect("cargo builds the program before its tests");
    command.env_remove("RUST_LOG").arg("status").arg(run);
    command
}

#[test]
fn a_run_at_work_shows_what_it_has_done_and_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), 32, "training", 2);
    let found = status(folder.path()).assert().success();
    for words in [
        "3d_fullres, fold 0   training",
        "32 of 40 epochs done   step 325/400   3 min 45 s left",
        "train -0.3750  val -0.2750",
        "class 1 0.6937  class 2 -",
        "best 0.6000 after epoch 30",
        "8.00 samples/s   2.00 s per step   data wait 25.0 %   communication 5.0 %   2 processes",
        "checkpoint  none yet",
        "█▇",
    ] {
        let text = String::from_utf8_lossy(&found.get_output().stdout);
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
}

#[test]
fn a_stalled_run_is_distinguished_from_a_finished_one() {
    let folder = tempfile::tempdir().unwrap();
    let words = "no update for 12 min";
    write_run(folder.path(), 3, "training", 12 * 60);
    status(folder.path()).assert().success().stdout(contains(words).and(contains("left").not()));
    for (state, words) in [("finished", "fold 0   finished"), ("stopped", "stopped, can be resumed")] {
        write_run(folder.path(), EPOCHS, state, 12 * 60);
        // A finished run has no remaining time.
        status(folder.path())
            .args(["--watch", "3600"])
            .assert()
            .success()
            .stdout(contains(words).and(contains("no update").not()));
    }
    // While held-out cases are predicted, the run writes their label maps.
    write_run(folder.path(), EPOCHS, "predicting", 12 * 60);
    status(folder.path()).assert().success().stdout(contains(words));
    fs::create_dir(folder.path().join("validation")).unwrap();
    status(folder.path()).assert().success().stdout(contains("predicting the held-out cases"));
}

#[test]
fn several_runs_have_a_line_each_and_json_has_all_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| folder.path().join("runs/3d_fullres").join(name);
    write_run(&run("fold_0"), EPOCHS, "finished", 99);
    write_run(&run("fold_1"), 2, "training", 1);
    fs::create_dir_all(run("fold_2")).unwrap();
    fs::write(run("fold_2").join("config.toml"), "fold = '2'").unwrap();

    let output = status(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 3, "{text}");
    for (line, words) in lines[1..].iter().zip([["finished", "40/40"], ["training", "2/40"], ["not started", "0/1000"]])
    {
        assert!(words.iter().all(|words| line.contains(words)), "{words:?}: {line}");
    }

    let output = status(&run("fold_1")).arg("--json").output().unwrap();
    let runs: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(runs.as_array().unwrap().len(), 1);
    let run = &runs[0];
    assert_eq!((&run["state"], &run["epochs_done"], &run["step"]), (&"training".into(), &2.into(), &25.into()));
    assert_eq!(run["pseudo_dice"]["class 2"], Value::Null);
    assert_eq!((run["data_wait"].as_f64(), run["best_epoch"].as_u64()), (Some(0.25), Some(2)));
    assert!((run["left_s"].as_f64().unwrap() - 37.5 * 30.0).abs() < 1e-9, "{run}");
}

#[test]
fn invalid_and_damaged_runs_are_named_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |run: &Path, words: &'static str| {
        let line = starts_with("error: ").and(contains(words)).and(predicates::str::is_match(r"^[^\n]*\n$").unwrap());
        status(run).assert().code(3).stdout(is_empty()).stderr(line);
    };
    refused(&folder.path().join("missing"), "missing: does not exist");
    refused(folder.path(), "has no run");
    write_run(folder.path(), 2, "training", 1);
    fs::write(folder.path().join("log.jsonl"), "{}\n").unwrap();
    refused(folder.path(), "log.jsonl: line 1");
    status(folder.path()).args(["--watch", "0"]).assert().code(2);
}
