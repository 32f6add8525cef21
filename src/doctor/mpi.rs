//! Checks of MPI in this build and of the launcher on this machine.

use std::io;
use std::process::{Command, Stdio};

use super::{Finding, PartState};

const LAUNCHER: &str = "mpirun";
const INSTALL: &str = "sudo apt-get install openmpi-bin";

pub(super) fn examine() -> Vec<Finding> {
    let library = library();
    let launcher = launcher(&library);
    vec![library, launcher]
}

#[cfg(feature = "mpi")]
fn library() -> Finding {
    match ::mpi::environment::library_version() {
        Ok(version) => Finding::found("MPI", first_line(&version)),
        Err(error) => Finding::needed("MPI", format!("its library has no version: {error}"), INSTALL),
    }
}

#[cfg(not(feature = "mpi"))]
fn library() -> Finding {
    Finding::optional("MPI", "not in this build; training uses a single process", "cargo build --features mpi")
}

fn launcher(library: &Finding) -> Finding {
    let output = Command::new(LAUNCHER).arg("--version").stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => check_launcher(&String::from_utf8_lossy(&output.stdout), library),
        Ok(output) => missing(format!("`mpirun --version` fails ({})", output.status)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            missing("not on PATH; required to start several processes".to_owned())
        }
        Err(error) => missing(format!("cannot be run: {error}")),
    }
}

/// With the launcher of another MPI implementation, every process would see a world of size 1.
fn check_launcher(version: &str, library: &Finding) -> Finding {
    let is_open_mpi = |text: &str| text.contains("Open MPI");
    match &library.state {
        PartState::Found(library) if is_open_mpi(library) != is_open_mpi(version) => {
            let effect = format!("`{}` is not the launcher of {library}", first_line(version));
            let package = if is_open_mpi(library) { "openmpi" } else { "mpich" };
            let fix = format!("export PATH=DIR:$PATH # DIR: where this MPI's mpirun is, or run mpirun.{package}");
            Finding::needed(LAUNCHER, effect, fix)
        }
        _ => Finding::found(LAUNCHER, first_line(version)),
    }
}

/// Optional: training in one process does not need it.
fn missing(effect: String) -> Finding {
    Finding::optional(LAUNCHER, effect, INSTALL)
}

/// First non-empty line; Open MPI's version string ends in a NUL, MPICH's has many lines.
fn first_line(text: &str) -> String {
    let mut lines = text.lines().map(|line| line.trim_matches(|c: char| c.is_whitespace() || c == '\0'));
    lines.find(|line| !line.is_empty()).unwrap_or("unknown version").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_one_line() {
        assert_eq!(first_line("\nmpirun (Open MPI) 4.1.4\n\nReport bugs\n"), "mpirun (Open MPI) 4.1.4");
        assert_eq!(first_line("Open MPI v4.1.4\0"), "Open MPI v4.1.4");
        assert_eq!(first_line(""), "unknown version");
    }

    #[test]
    fn launcher_must_belong_to_the_library() {
        let library = Finding::found("MPI", "Open MPI v4.1.4");
        assert_eq!(
            check_launcher("mpirun (Open MPI) 4.1.4\n", &library),
            Finding::found("mpirun", "mpirun (Open MPI) 4.1.4")
        );
        let PartState::Missing { effect, needed: true, .. } = check_launcher("HYDRA build details:\n", &library).state
        else {
            panic!("MPICH's launcher cannot start Open MPI's processes");
        };
        assert!(effect.contains("HYDRA") && effect.contains("Open MPI v4.1.4"), "{effect}");
        assert!(matches!(check_launcher("HYDRA build details:", &missing(String::new())).state, PartState::Found(_)));
    }
}
