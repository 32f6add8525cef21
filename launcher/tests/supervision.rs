//! Supervision of jobs that fail, hang, ignore signals, or lose their launcher.

mod common;

use common::{Stage, finish, runs, send, wait_for};

#[test]
fn a_job_that_succeeds_is_passed_through() {
    let stage = Stage::new("echo '[1,0]<stdout>:a'; echo '[1,1]<stderr>:b' >&2; echo mpirun speaks >&2");
    let outcome = stage.train(&["--max-restarts", "3"]);
    outcome.ended_with(0);
    assert_eq!(outcome.stdout, "[0] a\n");
    assert_eq!(outcome.stderr, "[1] b\nmpirun speaks\n");
    assert!(stage.read("words.1").ends_with(" train -w work\n"), "{}", stage.read("words.1"));
}

#[test]
fn one_rank_has_no_prefix() {
    let stage = Stage::new("echo '[1] is a list'; echo $NNUNET_LAUNCH_JOB > $DIR/marker");
    let outcome = common::observe(stage.launcher(&["-np", "1"], &["predict"]));
    outcome.ended_with(0);
    assert_eq!(outcome.stdout, "[1] is a list\n");
    assert!(stage.read("marker").trim().len() > 3);
}

#[test]
fn a_rank_that_reports_a_loss_and_hangs_is_killed() {
    // The fake mpirun ignores TERM, like one that waits for a frozen host.
    let stage =
        Stage::new("trap '' TERM; echo '[1,1]<stderr>:error: rank 1: rank 0 is lost' >&2; while :; do sleep 1; done");
    let outcome = stage.train(&["--grace", "0.2"]);
    outcome.ended_with(75).says("[1] error: rank 1: rank 0 is lost").says("ending the job: a rank reported an error");
    assert!(!runs(stage.id("pid")));
}

#[test]
fn a_training_without_progress_hangs() {
    let stage = Stage::new(
        "echo \"[1,0]<stdout>:run_dir = '$DIR'\"\n\
         for step in 1 2 3; do\n\
           echo \"{\\\"state\\\":\\\"training\\\",\\\"step\\\":$step,\\\"updated_unix\\\":$(date +%s)}\" > $DIR/status.json\n\
           sleep 0.7\n\
         done\n\
         while :; do echo '[1,1]<stdout>:waiting'; sleep 0.1; done",
    );
    let outcome = stage.train(&["--hang-timeout", "2"]);
    outcome.ended_with(75).says("no progress for 2 s").says("step 3");
    assert!(!runs(stage.id("pid")));
}

#[test]
fn what_a_job_leaves_behind_is_killed() {
    // The rank runs in its own process group, like ranks of mpirun, and outlives mpirun.
    let stage = Stage::new(
        "setsid sh -c 'echo $$ > '$DIR'/rank; exec sleep 300' & until [ -s $DIR/rank ]; do sleep 0.05; done; exit 137",
    );
    stage.train(&[]).ended_with(75).says("a rank ended by signal 9");
    wait_for("the end of the rank", || !runs(stage.id("rank")));
}

#[test]
fn other_hosts_are_cleaned_through_the_agent() {
    let stage = Stage::new("exit 205");
    stage.program(
        "agent",
        &format!("#!/bin/sh\necho \"$@\" >> {}/calls.$1; [ $1 != gone ]\n", stage.path("").display()),
    );
    let agent = stage.path("agent");
    let flags = ["-H", "localhost:1,there:1,gone:1", "--rsh-agent", agent.to_str().unwrap()];
    let outcome = common::observe(stage.launcher(&flags, &["train"]));
    outcome.ended_with(75).says("mpirun lost the connection to a host").says("no answer from gone:");
    assert!(stage.read("calls.there").contains("kill -KILL"), "{}", stage.read("calls.there"));
    assert!(!stage.path("calls.localhost").exists());
}

#[test]
fn usr1_and_term_let_the_ranks_save() {
    for signal in [libc::SIGUSR1, libc::SIGTERM] {
        let stage = Stage::new("trap 'echo saved; exit 79' USR1; touch $DIR/ready; while :; do sleep 0.05; done");
        let child = stage.start_train(&["--max-restarts", "3"]);
        send(child.id() as i32, signal);
        let outcome = finish(child);
        outcome.ended_with(79);
        assert_eq!(outcome.stdout, "saved\n");
        assert_eq!(stage.read("attempts"), "1\n");
    }
}

#[test]
fn an_interrupt_ends_the_job_and_a_second_one_kills_it() {
    let stage = Stage::new("trap 'exit 130' INT; touch $DIR/ready; while :; do sleep 0.05; done");
    let child = stage.start_train(&["--max-restarts", "3"]);
    send(child.id() as i32, libc::SIGINT);
    finish(child).ended_with(130);

    let stage = Stage::new("trap 'touch $DIR/heard' INT; trap '' TERM; touch $DIR/ready; while :; do sleep 0.05; done");
    let child = stage.start_train(&["--max-restarts", "3"]);
    send(child.id() as i32, libc::SIGINT);
    wait_for("the interrupt", || stage.path("heard").exists());
    send(child.id() as i32, libc::SIGINT);
    finish(child).ended_with(130);
    assert!(!runs(stage.id("pid")));
    assert_eq!(stage.read("attempts"), "1\n");
}

#[test]
fn an_interrupt_that_is_ignored_kills_after_the_grace() {
    let stage = Stage::new("trap '' INT TERM; touch $DIR/ready; while :; do sleep 0.05; done");
    let child = stage.start_train(&["--grace", "0.2"]);
    send(child.id() as i32, libc::SIGINT);
    finish(child).ended_with(130);
    assert!(!runs(stage.id("pid")));
}

#[test]
fn a_launcher_that_is_killed_leaves_nobody() {
    let stage = Stage::new("touch $DIR/ready; exec sleep 300");
    let child = stage.start_train(&[]);
    let id = stage.id("pid");
    assert!(runs(id));
    send(child.id() as i32, libc::SIGKILL);
    finish(child);
    wait_for("the end of the starter", || !runs(id));
}

#[test]
fn output_that_nobody_reads_does_not_stop_the_job() {
    let stage = Stage::new("touch $DIR/ready; yes '[1,0]<stdout>:line' | head -n 100000; touch $DIR/over");
    let mut child = stage.start_train(&[]);
    drop(child.stdout.take());
    finish(child).ended_with(0);
    assert!(stage.path("over").exists());
}
