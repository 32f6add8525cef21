//! Jobs of several real processes, run to their end.
#![allow(dead_code)]

use std::env;
use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nnunet_dist::distributed;
use tempfile::NamedTempFile;

use super::skip::skip;

/// Time limit: a job that takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A finished job.
pub struct Job {
    pub status: ExitStatus,
    /// Output of all ranks and the launcher.
    pub output: String,
}

impl Job {
    #[track_caller]
    pub fn succeeded(&self, ranks: usize) {
        assert!(self.status.success(), "{}\n{}", self.status, self.output);
        (0..ranks).for_each(|rank| self.says(&format!("rank {rank} of {ranks} is done")));
    }

    #[track_caller]
    pub fn failed_with(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{}\n{}", self.status, self.output);
        assert!(!self.output.contains("is done"), "{}", self.output);
    }

    #[track_caller]
    pub fn says(&self, text: &str) {
        assert!(self.output.contains(text), "no `{text}` in\n{}", self.output);
    }
}

/// The launcher of the MPI library of this build; `None`, with a printed line, if there is none.
pub fn launcher() -> Option<&'static str> {
    let names = if is_open_mpi() { ["mpirun.openmpi", "mpirun"] } else { ["mpirun.mpich", "mpirun"] };
    let found = names.into_iter().find(|name| is_installed(name));
    if found.is_none() {
        skip("no mpirun");
    }
    found
}

/// `command` as several ranks.
pub fn in_parallel(launcher: &str, ranks: usize, flags: &[&str], command: &Command) -> Command {
    let mut job = Command::new(launcher);
    job.arg("-np").arg(ranks.to_string()).args(flags).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => job.env(name, value),
            None => job.env_remove(name),
        };
    }
    // Test machines are containers that run as root, with few cores.
    for setting in ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe"] {
        job.env(format!("OMPI_{setting}"), "1");
    }
    job
}

/// This test program, restricted to the test `part_of_a_rank` of a module (`module_path!()`), which reads its
/// task from an environment variable.
pub fn me(module: &str, variable: &str, part: &str) -> Command {
    let (_, module) = module.split_once("::").expect("tests are in modules");
    let mut command = Command::new(env::current_exe().unwrap());
    command.arg(format!("{module}::part_of_a_rank")).args(["--exact", "--nocapture"]).env(variable, part);
    for variable in ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "RAYON_NUM_THREADS", "RUST_BACKTRACE"] {
        command.env_remove(variable);
    }
    command
}

/// Runs a command to its end. One at a time, since jobs have more processes than a small machine has cores.
pub fn observe(command: Command) -> Job {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    Running::start(command).ends_within(PATIENCE)
}

/// A running job, killed when it is dropped.
pub struct Running {
    command: Command,
    child: Child,
    output: NamedTempFile,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let file = NamedTempFile::new().unwrap();
        let output = || Stdio::from(File::options().append(true).open(file.path()).unwrap());
        let child = command.stdin(Stdio::null()).stdout(output()).stderr(output()).spawn().unwrap();
        Self { command, child, output: file }
    }

    /// The output of all ranks and the launcher so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.output.path()).unwrap()).into_owned()
    }

    pub fn is_over(&mut self) -> bool {
        self.finished().is_some()
    }

    /// Exit status of the job, or `None` while it runs.
    pub fn finished(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends SIGUSR1, unless the job has ended.
    pub fn ask_to_stop(&mut self) {
        if !self.is_over() {
            // SAFETY: the process has not been waited for, so its id is still valid.
            unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGUSR1) };
        }
    }

    /// Waits for the end of the job; panics if it takes longer than `patience`.
    #[track_caller]
    pub fn ends_within(mut self, patience: Duration) -> Job {
        let began = Instant::now();
        while began.elapsed() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Job { status, output: self.output() };
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the job hangs: {:?}\n{}", self.command, self.output());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_over() {
            return;
        }
        // A launcher that gets SIGTERM ends its ranks.
        // SAFETY: the process has not been waited for, so its id is still valid.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let began = Instant::now();
        while !self.is_over() && began.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub fn is_open_mpi() -> bool {
    distributed::mpi_version().is_some_and(|version| version.starts_with("Open MPI"))
}

pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| fs::metadata(folder.join(program)).is_ok())
}
