//! Runs this program as child processes, directly or under `mpirun`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cli::output::outln;

/// Command to start this program again.
pub struct Program {
    exe: PathBuf,
    mpi: bool,
}

/// One command line.
pub struct DemoCommand {
    command: Command,
}

/// A command line that succeeded.
pub struct CompletedCommand {
    /// Command line as typed in a shell.
    pub command: String,
    /// Wall time.
    pub elapsed: Duration,
}

impl Program {
    /// Finds the running executable and `mpirun`; prints a note if MPI is not available.
    pub fn locate() -> anyhow::Result<Self> {
        let exe = std::env::current_exe().context("the path of this program")?;
        let mpi = cfg!(feature = "mpi") && runs("mpirun");
        if !mpi {
            let why = if cfg!(feature = "mpi") { "mpirun is not installed" } else { "this build has no MPI" };
            outln!("note: {why}; training runs in one process");
        }
        Ok(Self { exe, mpi })
    }

    /// Returns whether [`Program::parallel`] starts several processes.
    pub fn has_mpi(&self) -> bool {
        self.mpi
    }

    /// `nnunet-dist SUBCOMMAND`
    pub fn single(&self, subcommand: &str) -> DemoCommand {
        let mut command = Command::new(&self.exe);
        command.arg(subcommand);
        DemoCommand { command }
    }

    /// `mpirun -np PROCESSES nnunet-dist SUBCOMMAND`, or [`Program::single`] without MPI.
    pub fn parallel(&self, processes: usize, subcommand: &str) -> DemoCommand {
        if !self.mpi {
            return self.single(subcommand);
        }
        let mut command = Command::new("mpirun");
        command.args(["-np", &processes.to_string()]).arg(&self.exe).arg(subcommand);
        // Set by environment instead of flags, because MPICH's mpirun does not know Open MPI's flags. A demo may use
        // more processes than cores: waiting ranks then yield their cores to the computing ones, and each process
        // divides the cores itself.
        command.env("OMPI_MCA_rmaps_base_oversubscribe", "1");
        command.env("OMPI_MCA_mpi_yield_when_idle", "1");
        command.env("OMPI_MCA_hwloc_base_binding_policy", "none");
        if is_root() {
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        }
        DemoCommand { command }
    }
}

impl DemoCommand {
    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds a flag and the path it takes.
    pub fn path(self, flag: &str, path: &Path) -> Self {
        self.args([OsString::from(flag), path.into()])
    }

    /// Runs the command with this process's standard output and error.
    ///
    /// # Errors
    /// Returns an error if the command cannot be started or fails; the command prints the cause itself.
    pub fn run(mut self) -> anyhow::Result<CompletedCommand> {
        let command = self.to_string();
        let began = Instant::now();
        let status = self.command.stdin(Stdio::null()).status().with_context(|| command.clone())?;
        if !status.success() {
            bail!("`{command}` failed ({status})");
        }
        Ok(CompletedCommand { command, elapsed: began.elapsed() })
    }
}

impl fmt::Display for DemoCommand {
    /// Formats the command line, with this program under its own name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        for (index, word) in words.enumerate() {
            let path = Path::new(word);
            let own = path.is_absolute() && path.file_stem() == Some(OsStr::new(env!("CARGO_PKG_NAME")));
            let word = if own { env!("CARGO_PKG_NAME").into() } else { word.to_string_lossy() };
            write!(f, "{}{word}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

fn runs(program: &str) -> bool {
    let silent = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    silent.is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    // SAFETY: reads the process's credentials; cannot fail.
    unsafe { libc::geteuid() == 0 }
}
