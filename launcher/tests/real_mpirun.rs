//! Tests with the real mpirun, and a shell in place of nnunet-dist.

mod common;
#[path = "../../tests/common/skip.rs"]
mod skip;

use std::env;
use std::path::Path;
use std::process::Command;

use common::{observe, wait_for};
use skip::skip;

/// Returns `nnunet-launch` with two shells under the mpirun of this machine; prints a note and returns `None` without
/// one.
fn shells(mpirun: &str, flags: &[&str], script: &str) -> Option<Command> {
    if !env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(mpirun).is_file()) {
        skip(format_args!("no {mpirun}"));
        return None;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-launch"));
    command.args(["-np", "2", "--program", "/bin/sh", "--mpirun", mpirun]).args(flags).args(["--", "-c", script]);
    Some(command)
}

const MPIRUNS: [&str; 3] = ["mpirun", "mpirun.openmpi", "mpirun.mpich"];
const RANK: &str = "rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK};";

#[test]
fn mpirun_gives_each_rank_its_prefix() {
    for mpirun in MPIRUNS {
        let script = format!("{RANK} echo rank $rank; echo rank $rank says $NNUNET_TEST_WORD >&2");
        let Some(mut command) = shells(mpirun, &[], &script) else { continue };
        command.env("NNUNET_TEST_WORD", "hello");
        let outcome = observe(command);
        outcome.ended_with(0).says("[0] rank 0 says hello\n").says("[1] rank 1 says hello\n");
        let mut lines: Vec<_> = outcome.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["[0] rank 0", "[1] rank 1"], "{mpirun}");
    }
}

#[test]
fn mpirun_hands_codes_and_signals_on() {
    for mpirun in MPIRUNS {
        let Some(command) = shells(mpirun, &[], &format!("{RANK} [ $rank = 0 ] || exit 3; exec sleep 1")) else {
            continue;
        };
        observe(command).ended_with(3);
        let folder = tempfile::tempdir().unwrap();
        let script = format!("{RANK} trap 'exit 79' USR1; touch $DIR/$rank; while :; do :; done");
        let Some(mut command) = shells(mpirun, &[], &script.replace("$DIR", folder.path().to_str().unwrap())) else {
            continue;
        };
        let ready = |rank: &str| Path::new(folder.path()).join(rank).exists();
        let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        wait_for("the start of the ranks", || ready("0") && ready("1"));
        common::send(child.id() as i32, libc::SIGUSR1);
        let outcome = common::finish(child);
        // MPICH's mpirun may exit with 0 after a signal, independent of the ranks' exit codes.
        if !(mpirun == "mpirun.mpich" && outcome.status.success()) {
            outcome.ended_with(79);
        }
    }
}

#[test]
fn a_rank_that_is_killed_under_mpirun_is_worth_a_restart() {
    for mpirun in MPIRUNS {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let script = format!("[ -e {0} ] && exit 0; sleep 0.3; touch {0}; kill -KILL $$", mark.display());
        let Some(command) = shells(mpirun, &["--max-restarts", "1", "--backoff", "0.1"], &script) else { continue };
        observe(command).ended_with(0).says("restart 1 of 1");
    }
}
