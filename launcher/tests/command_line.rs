//! Output of the launcher without starting a job.

mod common;

use std::process::Command;

use common::{Stage, observe};

#[test]
fn a_dry_run_prints_a_line_for_the_shell() {
    let stage = Stage::new("exit 1");
    let outcome =
        observe(stage.launcher(&["-np", "2", "--dry-run", "--interface", "eth0"], &["train", "-w", "my data"]));
    outcome.ended_with(0);
    assert_eq!(outcome.stdout.lines().count(), 1);
    assert!(
        outcome.stdout.contains("--mca oob_tcp_keepalive_time 3") && outcome.stdout.ends_with(" train -w 'my data'\n")
    );
    assert!(!stage.path("attempts").exists());
}

#[test]
fn a_host_file_is_read() {
    let stage = Stage::new("exit 1");
    std::fs::write(stage.path("hosts"), "a slots=2\nb:1\n").unwrap();
    let outcome = observe(stage.launcher(&["--hostfile", "hosts", "--dry-run"], &["train"]));
    outcome.ended_with(0);
    assert!(outcome.stdout.contains(" -np 3 ") && outcome.stdout.contains(" --host a:2,b:1 "), "{outcome}");
    std::fs::write(stage.path("hosts"), "a cores=2\n").unwrap();
    observe(stage.launcher(&["--hostfile", "hosts"], &["train"]))
        .ended_with(2)
        .says("error: --hostfile hosts: line 1: ");
}

#[test]
fn slurm_is_started_with_srun() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-launch"));
    command.args(["--slurm", "--dry-run", "--", "train"]).env("SLURM_NTASKS", "4");
    let outcome = observe(command);
    outcome.ended_with(0);
    assert!(outcome.stdout.contains("srun --ntasks=4 --mpi=pmix --kill-on-bad-exit=1 "), "{outcome}");
}

#[test]
fn what_cannot_be_is_refused_with_the_fix() {
    let stage = Stage::new("exit 1");
    observe(stage.launcher(&["-np", "5", "-H", "a:2,b:2"], &["train"])).ended_with(2).says("lower -np");
    observe(stage.launcher(&[], &[])).ended_with(2);
    let mut blind = stage.launcher(&["-np", "2"], &["train", "--device", "cuda"]);
    blind.env("CUDA_VISIBLE_DEVICES", "");
    observe(blind).ended_with(4).says("this host shows no GPU");
    stage.program("mpirun", "#!/bin/sh\necho nothing known\n");
    observe(stage.launcher(&["-np", "2"], &["train"])).ended_with(4).says("neither Open MPI nor MPICH");
    std::fs::remove_file(stage.path("mpirun")).unwrap();
    observe(stage.launcher(&["-np", "2"], &["train"])).ended_with(4).says("install Open MPI");
}

#[test]
fn a_fake_driver_gives_a_process_per_gpu() {
    let stage = Stage::new("exit 0");
    stage.program(
        "nvidia-smi",
        "#!/bin/sh\nprintf 'GPU 0: A (UUID: GPU-0)\\nGPU 1: A (UUID: GPU-1)\\nGPU 2: A (UUID: GPU-2)\\n'\n",
    );
    let path = format!("{}:{}", stage.path("").display(), std::env::var("PATH").unwrap());
    let dry = |flags: &[&str], mask: Option<&str>| {
        let mut command = stage.launcher(flags, &["train", "--device", "cuda"]);
        command.arg("x").env("PATH", &path);
        mask.map(|mask| command.env("CUDA_VISIBLE_DEVICES", mask));
        observe(command)
    };
    assert!(dry(&["--dry-run"], None).ended_with(0).stdout.contains(" -np 3 "));
    let masked = dry(&["--dry-run"], Some("0,2"));
    assert!(masked.stdout.contains(" -np 2 ") && masked.stdout.contains("-x CUDA_VISIBLE_DEVICES"), "{masked}");
    dry(&["-np", "4"], None).ended_with(2).says("use -np 3");
}
