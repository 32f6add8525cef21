//! `nnunet-dist doctor` runs on any machine, also if parts are missing.

use assert_cmd::Command;
use predicates::prelude::{PredicateBooleanExt, predicate::str::contains};

fn doctor() -> Command {
    let mut command = Command::cargo_bin("nnunet-dist").expect("cargo builds the program before its tests");
    command.arg("doctor");
    command
}

#[test]
fn every_part_is_named() {
    let mut all = doctor().assert().success();
    for part in ["CPU", "oneDNN", "CUDA driver", "NVRTC", "cuDNN", "NCCL", "MPI", "mpirun", "/dev/shm", "temp folder"] {
        all = all.stdout(contains(part));
    }
}

#[test]
fn a_missing_part_is_not_a_failure_and_has_a_fix() {
    doctor()
        .env("NNUNET_DIST_ONEDNN", "0")
        .env("PATH", "/nowhere")
        .assert()
        .success()
        .stdout(contains("oneDNN       missing  disabled by").and(contains("fix: unset NNUNET_DIST_ONEDNN")))
        .stdout(contains("mpirun       missing  not on PATH").and(contains("fix: sudo apt-get install openmpi-bin")));
}
