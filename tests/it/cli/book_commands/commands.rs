//! The commands that a page may use, and the treatment of each.
//!
//! A page sees only these. A command that is in no table fails its page: add it to one.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::job;
use crate::pages as book;

/// Run unchanged. If one is not installed, its lines are reported as not run.
const REAL: &[&str] = &[
    "awk",
    "basename",
    "bash",
    "cat",
    "cut",
    "date",
    "dirname",
    "env",
    "find",
    "grep",
    "gzip",
    "head",
    "id",
    "jq",
    "ls",
    "mktemp",
    "nproc",
    "readlink",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "tar",
    "test",
    "timeout",
    "tr",
    "uname",
    "unzip",
    "wc",
    "xz",
    "zip",
];

/// Run by a stand-in of the same name in `stand_ins/`, whose head states the differences from the command.
const STAND_INS: &[&str] = &["curl", "git", "make", "mpirun", "nnunet-dist", "nnunet-launch", "sbatch", "srun"];

/// Run only within the folder of the page, by one stand-in for all.
const FILES: &[&str] = &["chmod", "cp", "ln", "mkdir", "mv", "rm", "rmdir", "tee", "touch"];

/// Not run, with the reason.
const ABSENT: &[(&str, &str)] = &[
    ("apptainer", "no containers on a machine that tests"),
    ("apt", "changes the machine"),
    ("apt-get", "changes the machine"),
    ("cargo", "builds for minutes what is tested here anyway"),
    ("conda", "changes the machine"),
    ("dnf", "changes the machine"),
    ("docker", "no containers on a machine that tests"),
    ("enroot", "no containers on a machine that tests"),
    ("gh", "asks a service on the network"),
    ("helm", "no Kubernetes on a machine that tests"),
    ("install", "changes the machine"),
    ("kubectl", "no Kubernetes on a machine that tests"),
    ("mdbook", "is a program of another project"),
    ("module", "no environment modules on a machine that tests"),
    ("ml", "no environment modules on a machine that tests"),
    ("nvidia-smi", "no GPU"),
    ("oras", "asks a service on the network"),
    ("pip", "changes the machine"),
    ("pip3", "changes the machine"),
    ("podman", "no containers on a machine that tests"),
    ("prometheus", "is a program of another project"),
    ("python", "needs packages that tests do not install"),
    ("python3", "needs packages that tests do not install"),
    ("rpm", "changes the machine"),
    ("rustup", "changes the machine"),
    ("scancel", "no Slurm outside of tests/it/distributed/cluster"),
    ("scp", "no other host"),
    ("rsync", "no other host"),
    ("singularity", "no containers on a machine that tests"),
    ("sinfo", "no Slurm outside of tests/it/distributed/cluster"),
    ("skopeo", "no containers on a machine that tests"),
    ("spack", "builds for minutes what is tested here anyway"),
    ("squeue", "no Slurm outside of tests/it/distributed/cluster"),
    ("ssh", "no other host"),
    ("sudo", "changes the machine"),
    ("systemctl", "changes the machine"),
    ("tensorboard", "is a program of another project"),
    ("wget", "asks a service on the network"),
];

/// The folder that is the PATH of a page.
pub struct Commands {
    pub folder: PathBuf,
}

impl Commands {
    pub fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let stand_ins = book::root().join("tests/it/cli/book_commands/stand_ins");
        STAND_INS.iter().for_each(|name| symlink(stand_ins.join(name), folder.join(name)).unwrap());
        FILES.iter().for_each(|name| symlink(stand_ins.join("files"), folder.join(name)).unwrap());
        symlink(stand_ins.join("common.sh"), folder.join("common.sh")).unwrap();
        for name in REAL {
            match find(name) {
                Some(path) => symlink(path, folder.join(name)).unwrap(),
                None => write_absent(folder, name, "is not installed"),
            }
        }
        ABSENT.iter().for_each(|(name, reason)| write_absent(folder, name, reason));
        Self { folder: folder.to_owned() }
    }

    /// Environment variables that the stand-ins need in addition to the state of the page.
    pub fn settings(&self) -> Vec<(&'static str, PathBuf)> {
        let program = program();
        let launcher = program.with_file_name("nnunet-launch");
        vec![
            ("BOOK_STAND_INS", self.folder.clone()),
            ("BOOK_PATH", env::var_os("PATH").unwrap_or_default().into()),
            ("BOOK_ROOT", book::root().to_owned()),
            ("BOOK_LAUNCHER", launcher),
            ("BOOK_PROGRAM", program),
            ("BOOK_MPIRUN", job::launcher().and_then(find).unwrap_or_default()),
        ]
    }
}

/// The program, or the one that `NNUNET_DIST_BIN` names.
pub fn program() -> PathBuf {
    env::var_os("NNUNET_DIST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_nnunet-dist").into(), PathBuf::from)
}

/// Writes a replacement for a command that is not run. It reads its standard input, so that the other end of a pipe
/// does not fail.
fn write_absent(folder: &Path, name: &str, reason: &str) {
    let script = format!(
        "#!/bin/bash\n. \"$BOOK_STAND_INS/common.sh\"\nnote absent \"{name} $*: {reason}\"\n\
         [ -t 0 ] || cat >/dev/null\n"
    );
    fs::write(folder.join(name), script).unwrap();
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}
