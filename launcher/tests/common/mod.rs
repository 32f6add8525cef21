//! Test helpers: the launcher with a shell script in place of mpirun.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Timeout for an event of a test.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Folder with a fake mpirun, whose script can use `$DIR` (the folder) and `$ATTEMPT` (1, 2, …).
pub struct Stage {
    folder: tempfile::TempDir,
}

/// Result of a finished launcher.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Stage {
    pub fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().display().to_string();
        let stage = Self { folder };
        let head = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && {{ echo 'mpirun (Open MPI) 4.1.4'; exit 0; }}\nDIR='{dir}'\n\
             ATTEMPT=$(($(cat $DIR/attempts 2>/dev/null || echo 0) + 1)); echo $ATTEMPT > $DIR/attempts\n\
             echo $$ > $DIR/pid; echo \"$*\" > $DIR/words.$ATTEMPT\n"
        );
        stage.program("mpirun", &format!("{head}{script}\n"));
        stage
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn program(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `nnunet-launch FLAGS -- WORDS` with the fake mpirun.
    pub fn launcher(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-launch"));
        command.arg("--mpirun").arg(self.path("mpirun")).args(["--backoff", "0.01"]).args(flags).arg("--").args(words);
        command.env_remove("CUDA_VISIBLE_DEVICES").current_dir(self.folder.path());
        command
    }

    /// Runs the launcher with a training of two ranks until it ends.
    pub fn train(&self, flags: &[&str]) -> Outcome {
        let flags: Vec<_> = ["-np", "2"].iter().chain(flags).copied().collect();
        observe(self.launcher(&flags, &["train", "-w", "work"]))
    }

    /// Starts the same training and waits until the script has created the file `ready`.
    pub fn start_train(&self, flags: &[&str]) -> Child {
        let flags: Vec<_> = ["-np", "2"].iter().chain(flags).copied().collect();
        let mut command = self.launcher(&flags, &["train", "-w", "work"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("ready", || self.path("ready").exists());
        child
    }

    /// Reads a process ID that the script has written to a file.
    pub fn id(&self, name: &str) -> i32 {
        self.read(name).trim().parse().unwrap()
    }
}

impl Outcome {
    #[track_caller]
    pub fn ended_with(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "signal {:?}\n{self}", self.status.signal());
        self
    }

    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "no `{text}` in\n{self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr)
    }
}

pub fn observe(mut command: Command) -> Outcome {
    finish(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Waits for the end; a hanging launcher is killed and its output is shown.
pub fn finish(child: Child) -> Outcome {
    let id = child.id();
    let (over, hangs) = std::sync::mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        if hangs.recv_timeout(TIMEOUT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            send(id as i32, libc::SIGKILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(over);
    guard.join().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Outcome { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[track_caller]
pub fn wait_for(what: &str, happened: impl Fn() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < TIMEOUT, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn send(id: i32, signal: i32) {
    // SAFETY: no preconditions.
    unsafe { libc::kill(id, signal) };
}

/// Returns whether a process runs; zombies do not count.
pub fn runs(id: i32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(id.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}
