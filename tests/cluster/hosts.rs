//! A cluster of namespaces for the length of a test, made by `hosts.sh`.

use std::env;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::job;

/// The folder with the scripts.
pub const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster");

/// Whether the long tests are wanted, too; says so where not.
pub fn is_full() -> bool {
    let is_full = env::var_os("NNUNET_CLUSTER").is_some_and(|value| value == "full");
    if !is_full {
        println!("skipped: `make test-cluster` (NNUNET_CLUSTER=full) runs it");
    }
    is_full
}

/// What crossed the network interface of a host.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub received: u64,
    pub sent: u64,
}

/// Hosts `1 ..= N`. The cluster goes down when this is dropped, and also when the test is killed.
pub struct Cluster {
    prefix: String,
    state: PathBuf,
    /// Takes the cluster down when its standard input ends.
    keeper: Child,
    /// A checkout has one cluster at a time.
    _lock: File,
}

impl Cluster {
    /// `None`, with a line that says why, where there can be none.
    pub fn up(hosts: usize) -> Option<Self> {
        if !job::is_open_mpi() {
            println!("skipped: the flags are those of Open MPI");
            return None;
        }
        let prefix = prefix();
        let folder = env::temp_dir();
        let lock = File::create(folder.join(format!("{prefix}-cluster.lock"))).unwrap();
        lock.lock().unwrap();
        let state = folder.join(format!("{prefix}-cluster"));
        if !is_possible(script(&prefix, &state, "check")) {
            return None;
        }
        // What a machine that lost power may have left.
        succeed(script(&prefix, &state, "down"));
        let mut hold = script(&prefix, &state, "hold");
        let keeper = hold.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let cluster = Self { prefix, state, keeper, _lock: lock };
        succeed(cluster.script(&["up", &hosts.to_string()]));
        Some(cluster)
    }

    /// Whether links can be made slow; says why not.
    pub fn can_shape(&self) -> bool {
        is_possible(self.script(&["check", "shape"]))
    }

    /// The name of a host.
    pub fn host(&self, number: usize) -> String {
        format!("{}{number}", self.prefix)
    }

    /// A script of this folder, told of this cluster.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = tool(name, &self.prefix, &self.state);
        command.args(arguments);
        command
    }

    fn script(&self, arguments: &[&str]) -> Command {
        self.tool("hosts.sh", arguments)
    }

    /// `command` on the first host.
    pub fn on_first(&self, command: &Command) -> Command {
        append(self.script(&["exec", &self.host(1)]), command)
    }

    /// `command` under mpirun, one rank on each host.
    pub fn mpirun(&self, command: &Command) -> Command {
        append(self.script(&["run", "1"]), command)
    }

    /// What stands in for ssh.
    pub fn remote_shell(&self) -> PathBuf {
        self.state.join("rsh")
    }

    /// Kills everything on a host at once.
    pub fn power_off(&self, number: usize) {
        succeed(self.script(&["power", &self.host(number)]));
    }

    /// Stops everything on a host.
    pub fn freeze(&self, number: usize) {
        succeed(self.script(&["freeze", &self.host(number)]));
    }

    /// Lets it go on.
    pub fn thaw(&self, number: usize) {
        succeed(self.script(&["thaw", &self.host(number)]));
    }

    /// Pulls the cable of a host.
    pub fn cut_link(&self, number: usize) {
        succeed(self.script(&["link", &self.host(number), "down"]));
    }

    /// Plugs it in again.
    pub fn mend_link(&self, number: usize) {
        succeed(self.script(&["link", &self.host(number), "up"]));
    }

    /// Sends a signal to the rank of a host.
    pub fn signal(&self, number: usize, signal: &str) {
        succeed(self.script(&["signal", &self.host(number), signal, "nnunet-dist"]));
    }

    /// The same, where the rank may be gone already.
    pub fn try_signal(&self, number: usize, signal: &str) {
        let _ = self.script(&["signal", &self.host(number), signal, "nnunet-dist"]).output();
    }

    /// Makes all links slow and lossy.
    pub fn shape(&self, rate: &str, loss: &str) {
        succeed(self.script(&["shape", rate, loss]));
    }

    /// Of each host.
    pub fn traffic(&self) -> Vec<Traffic> {
        let lines = succeed(self.script(&["stat"]));
        let numbers = |line: &str| line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect::<Vec<_>>();
        lines.lines().map(numbers).map(|numbers| Traffic { received: numbers[0], sent: numbers[1] }).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Runs a command to its end and gives what it printed.
#[track_caller]
pub fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a check, and passes on why it is not possible.
pub fn is_possible(mut check: Command) -> bool {
    let output = check.output().unwrap();
    if !output.status.success() {
        println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    output.status.success()
}

/// Names of hosts and namespaces that another checkout does not have: `t`, four letters and `n`.
fn prefix() -> String {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_MANIFEST_DIR").hash(&mut hasher);
    let letters = (0..4).map(|place| (b'a' + (hasher.finish() >> (8 * place)) as u8 % 26) as char);
    format!("t{}n", letters.collect::<String>())
}

fn script(prefix: &str, state: &Path, subcommand: &str) -> Command {
    let mut command = tool("hosts.sh", prefix, state);
    command.arg(subcommand);
    command
}

fn tool(name: &str, prefix: &str, state: &Path) -> Command {
    let mut command = Command::new(Path::new(SCRIPTS).join(name));
    command.env("NNUNET_CLUSTER_PREFIX", prefix).env("NNUNET_CLUSTER_STATE", state);
    command
}

/// The words of one command after those of another, with the environment of both.
fn append(mut front: Command, command: &Command) -> Command {
    front.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => front.env(name, value),
            None => front.env_remove(name),
        };
    }
    front
}
