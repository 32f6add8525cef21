//! A cluster of network namespaces for the duration of a test, made by `hosts.sh`.

use std::env;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::job;
use crate::skip::skip;

/// The folder with the scripts.
pub const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/distributed/cluster");

/// True if the long tests are enabled; prints a line if not.
pub fn is_full() -> bool {
    let is_full = env::var_os("NNUNET_CLUSTER").is_some_and(|value| value == "full");
    if !is_full {
        skip("`make test-cluster` (NNUNET_CLUSTER=full) runs it");
    }
    is_full
}

/// Bytes that crossed the network interface of a host.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub received: u64,
    pub sent: u64,
}

/// Hosts `1 ..= N`. The cluster is removed when this is dropped, and also when the test is killed.
pub struct Cluster {
    prefix: String,
    state: PathBuf,
    /// Removes the cluster when its standard input closes.
    keeper: Child,
    /// A lock, so that a checkout has one cluster at a time.
    _lock: File,
}

impl Cluster {
    /// Starts a cluster; returns `None` and prints the reason if that is impossible.
    pub fn up(hosts: usize) -> Option<Self> {
        if !job::is_open_mpi() {
            skip("these tests use flags of Open MPI");
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
        // Remains of an earlier run, for example after a power loss.
        succeed(script(&prefix, &state, "down"));
        let mut hold = script(&prefix, &state, "hold");
        let keeper = hold.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let cluster = Self { prefix, state, keeper, _lock: lock };
        succeed(cluster.script(&["up", &hosts.to_string()]));
        Some(cluster)
    }

    /// True if links can be made slow; prints the reason if not.
    pub fn can_shape(&self) -> bool {
        is_possible(self.script(&["check", "shape"]))
    }

    /// The name of a host.
    pub fn host(&self, number: usize) -> String {
        format!("{}{number}", self.prefix)
    }

    /// A script of this folder, run for this cluster.
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

    /// The replacement for ssh.
    pub fn remote_shell(&self) -> PathBuf {
        self.state.join("rsh")
    }

    /// Kills all processes of a host at once.
    pub fn power_off(&self, number: usize) {
        succeed(self.script(&["power", &self.host(number)]));
    }

    /// Stops all processes of a host.
    pub fn freeze(&self, number: usize) {
        succeed(self.script(&["freeze", &self.host(number)]));
    }

    /// Continues all processes of a host.
    pub fn thaw(&self, number: usize) {
        succeed(self.script(&["thaw", &self.host(number)]));
    }

    /// Takes the link of a host down.
    pub fn cut_link(&self, number: usize) {
        succeed(self.script(&["link", &self.host(number), "down"]));
    }

    /// Brings the link of a host up again.
    pub fn mend_link(&self, number: usize) {
        succeed(self.script(&["link", &self.host(number), "up"]));
    }

    /// Sends a signal to the rank on a host.
    pub fn signal(&self, number: usize, signal: &str) {
        succeed(self.script(&["signal", &self.host(number), signal, "nnunet-dist"]));
    }

    /// Sends a signal to the rank on a host, if it still exists.
    pub fn try_signal(&self, number: usize, signal: &str) {
        let _ = self.script(&["signal", &self.host(number), signal, "nnunet-dist"]).output();
    }

    /// Makes all links slow and lossy.
    pub fn shape(&self, rate: &str, loss: &str) {
        succeed(self.script(&["shape", rate, loss]));
    }

    /// Traffic of each host.
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

/// Runs a command to its end and returns its standard output.
#[track_caller]
pub fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a check; prints its reason if it fails.
pub fn is_possible(mut check: Command) -> bool {
    let output = check.output().unwrap();
    if !output.status.success() {
        skip(String::from_utf8_lossy(&output.stderr).trim());
    }
    output.status.success()
}

/// A prefix for names of hosts and namespaces that is unique to the checkout: `t`, four letters and `n`.
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

/// Appends the words of one command to those of another, with the environment of both.
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
