//! Restarts: failures that are retried, the checkpoint used, and giving up.

mod common;

use common::{Stage, finish, send, wait_for};

/// Writes the status of a training at step `$1`.
const STATUS: &str = "at() { echo \"[1,0]<stdout>:run_dir = '$DIR'\"; \
    echo \"{\\\"state\\\":\\\"training\\\",\\\"step\\\":$1,\\\"updated_unix\\\":$(($(date +%s) + 1))}\" > $DIR/status.json; }\n";

#[test]
fn a_final_code_is_not_tried_again() {
    for code in [2, 3, 4, 101] {
        let stage = Stage::new(&format!("echo '[1,0]<stderr>:error: wrong' >&2; exit {code}"));
        stage.train(&["--max-restarts", "3"]).ended_with(code).says("error: wrong");
        assert_eq!(stage.read("attempts"), "1\n");
    }
}

#[test]
fn a_loss_is_tried_again_from_the_newest_checkpoint() {
    let stage = Stage::new(
        "echo \"${NNUNET_LAUNCH_RESTARTS-none}\" > $DIR/restarts.$ATTEMPT; \
         [ $ATTEMPT = 1 ] && { echo 'error: rank 1: lost' >&2; exit 75; }; echo done",
    );
    let outcome = stage.train(&["--max-restarts", "1"]);
    outcome.ended_with(0).says("attempt 1 failed: error: rank 1: lost; restart 1 of 1");
    assert_eq!(outcome.stdout, "done\n");
    assert!(stage.read("words.1").ends_with(" train -w work\n"));
    assert!(stage.read("words.2").ends_with(" train --resume=auto -w work\n"));
    // The variable is exported for the metrics of the run.
    assert!(stage.read("words.2").contains(" -x NNUNET_LAUNCH_RESTARTS "));
    assert_eq!([stage.read("restarts.1"), stage.read("restarts.2")], ["none\n", "1\n"]);
}

#[test]
fn without_restarts_a_loss_is_told_to_the_caller() {
    for script in ["exit 75", "exit 137", "exit 1", "kill -KILL $$"] {
        Stage::new(script).train(&[]).ended_with(75);
    }
    Stage::new("echo '[1,0]<stderr>:error: internal' >&2; exit 1").train(&["--max-restarts", "3"]).ended_with(1);
}

#[test]
fn the_same_step_twice_is_given_up() {
    let stage = Stage::new(&format!("{STATUS}at 7; sleep 0.2; echo \"error: rank 0: $ATTEMPT\" >&2; exit 75"));
    let outcome = stage.train(&["--max-restarts", "9"]);
    outcome.ended_with(75).says("giving up: failed twice at step 7");
    let table: Vec<_> = outcome.stderr.lines().filter(|line| line.contains("exit 75")).collect();
    assert_eq!(table.len(), 2, "{outcome}");
    assert!(table[0].contains("step 7") && table[0].contains("error: rank 0: 1"), "{outcome}");
    assert_eq!(stage.read("attempts"), "2\n");
}

#[test]
fn restarts_that_come_further_are_counted() {
    let stage = Stage::new(&format!("{STATUS}at $ATTEMPT; sleep 0.2; exit 75"));
    stage.train(&["--max-restarts", "2"]).ended_with(75).says("giving up: restart limit of 2 reached");
    assert_eq!(stage.read("attempts"), "3\n");
}

#[test]
fn a_host_that_stays_away_is_named() {
    let stage = Stage::new("exit 75");
    stage.program("agent", "#!/bin/sh\n[ $1 != gone ]\n");
    let agent = stage.path("agent");
    let flags =
        ["-H", "here,gone", "--rsh-agent", agent.to_str().unwrap(), "--max-restarts", "3", "--host-wait", "0.1"];
    let outcome = common::observe(stage.launcher(&flags, &["train"]));
    outcome.ended_with(75).says("waiting for gone").says("giving up: no answer from gone");
    assert_eq!(stage.read("attempts"), "1\n");
}

#[test]
fn a_host_that_comes_back_is_waited_for() {
    let stage = Stage::new("[ $ATTEMPT = 2 ] || exit 75");
    // The host does not answer during cleanup and at the first check.
    let count = stage.path("probes");
    stage.program("agent", &format!("#!/bin/sh\necho >> {0}; [ $(wc -l < {0}) -gt 2 ]\n", count.display()));
    let agent = stage.path("agent");
    let flags = ["-H", "away", "--rsh-agent", agent.to_str().unwrap(), "--max-restarts", "1"];
    common::observe(stage.launcher(&flags, &["train"])).ended_with(0).says("waiting for away");
}

#[test]
fn a_signal_ends_the_wait_for_a_restart() {
    let stage = Stage::new("touch $DIR/ready; exit 75");
    let mut command = stage.launcher(&["-np", "2", "--max-restarts", "3"], &["train"]);
    let mut words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    words.iter_mut().filter(|word| *word == "0.01").for_each(|word| *word = "50".into());
    command = std::process::Command::new(command.get_program());
    let child = command.args(words).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("the first attempt", || stage.path("ready").exists());
    std::thread::sleep(std::time::Duration::from_millis(300));
    send(child.id() as i32, libc::SIGTERM);
    finish(child).ended_with(75);
    assert_eq!(stage.read("attempts"), "1\n");
}
