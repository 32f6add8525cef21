//! Command line that starts the ranks, for mpirun of Open MPI or MPICH (Hydra), or for Slurm's srun.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::layout::Layout;
use crate::output::Tags;
use crate::task::{MARKER, Settings, Task, exported};

/// TCP keep-alive: idle seconds before the first probe, seconds between probes, number of lost probes allowed. With
/// mpirun's defaults of 300 s, 20 s and 9, a job with a lost host hangs for minutes.
const KEEP_ALIVE: [(&str, &str); 3] =
    [("oob_tcp_keepalive_time", "3"), ("oob_tcp_keepalive_intvl", "1"), ("oob_tcp_keepalive_probes", "3")];

/// Program that starts the ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's mpirun.
    OpenMpi(PathBuf),
    /// Hydra, the mpirun of MPICH and its derivatives.
    Hydra(PathBuf),
    /// Slurm's srun.
    Slurm(PathBuf),
}

impl Launcher {
    /// Detects the MPI implementation from the output of `mpirun --version`.
    pub fn detect(mpirun: &Path, version: &str) -> Option<Self> {
        let version = version.to_lowercase();
        if ["open mpi", "openrte", "prrte"].iter().any(|name| version.contains(name)) {
            Some(Self::OpenMpi(mpirun.to_owned()))
        } else if ["hydra", "mpich", "intel(r) mpi"].iter().any(|name| version.contains(name)) {
            Some(Self::Hydra(mpirun.to_owned()))
        } else {
            None
        }
    }

    /// Returns the format of rank tags in the output.
    pub fn tags(&self, layout: &Layout) -> Tags {
        match self {
            _ if layout.is_single() => Tags::None,
            Self::OpenMpi(_) => Tags::OpenMpi,
            Self::Hydra(_) => Tags::Hydra,
            Self::Slurm(_) => Tags::Slurm,
        }
    }

    fn program(&self) -> &Path {
        match self {
            Self::OpenMpi(path) | Self::Hydra(path) | Self::Slurm(path) => path,
        }
    }
}

/// Everything that determines the command line, except the task.
#[derive(Debug)]
pub struct LaunchCommand {
    /// Program that starts the ranks.
    pub launcher: Launcher,
    /// Number and hosts of the ranks.
    pub layout: Layout,
    /// Network interface for communication between hosts.
    pub interface: Option<String>,
    /// Remote shell with its flags; `None` for the default of mpirun.
    pub agent: Option<String>,
    /// Environment variables of the job.
    pub settings: Settings,
    /// Whether to permit Open MPI to run as root.
    pub is_root: bool,
}

impl LaunchCommand {
    /// Returns the program and its arguments.
    pub fn program_and_arguments(&self, task: &Task) -> Vec<OsString> {
        let flags = match &self.launcher {
            Launcher::OpenMpi(_) => self.open_mpi(),
            Launcher::Hydra(_) => self.hydra(),
            Launcher::Slurm(_) => self.slurm(),
        };
        let mut words = vec![self.launcher.program().into()];
        words.extend(flags.into_iter().map(OsString::from));
        words.push(task.program.clone().into());
        words.extend(task.arguments.iter().cloned());
        words
    }

    /// Returns an equivalent command line for a shell, without supervision.
    pub fn shell_line(&self, task: &Task) -> String {
        let settings = self.settings.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let words = self.program_and_arguments(task).into_iter().map(|word| quoted(&word.to_string_lossy()));
        settings.chain(words).collect::<Vec<_>>().join(" ")
    }

    fn open_mpi(&self) -> Vec<String> {
        let mut flags = Flags::new(self.count("-np"));
        if self.is_root {
            flags.word("--allow-run-as-root");
        }
        if !self.layout.is_single() {
            flags.word("--tag-output");
        }
        if self.layout.slots.is_empty() {
            // By default, mpirun has as many slots as this host has cores; more ranks on the CPU are slow, but not an
            // error.
            flags.word("--oversubscribe");
        } else {
            flags.pair("--host", &self.host_list());
        }
        // By slot: the ranks of a host are consecutive. No binding: each rank binds its threads to its share of the
        // cores.
        flags.pair("--map-by", "slot").pair("--bind-to", "none");
        if let Some(agent) = &self.agent {
            flags.parameter("plm", "rsh").parameter("plm_rsh_agent", agent);
        }
        flags.parameter("orte_keep_fqdn_hostnames", "1");
        KEEP_ALIVE.iter().for_each(|(name, value)| {
            flags.parameter(name, value);
        });
        if let Some(interface) = &self.interface {
            flags.parameter("oob_tcp_if_include", interface).parameter("btl_tcp_if_include", interface);
        }
        // Waiting ranks yield their cores to computing ones.
        flags.parameter("mpi_yield_when_idle", "1");
        if let Some(marker) = self.marker() {
            // Parameters appear on the command lines of the daemons on other hosts, which do not receive the
            // environment.
            flags.parameter(&MARKER.to_lowercase(), &format!("{MARKER}={marker}"));
        }
        exported(&self.settings).iter().for_each(|name| {
            flags.pair("-x", name);
        });
        flags.0
    }

    /// Hydra forwards its whole environment, places ranks host by host, and has no keep-alive setting.
    fn hydra(&self) -> Vec<String> {
        let mut flags = Flags::new(self.count("-n"));
        if !self.layout.is_single() {
            flags.word("-prepend-rank");
        }
        if !self.layout.slots.is_empty() {
            flags.pair("-hosts", &self.host_list());
        }
        flags.pair("-bind-to", "none");
        if let Some(agent) = &self.agent {
            flags.pair("-launcher", "ssh").pair("-launcher-exec", agent);
        }
        if let Some(interface) = &self.interface {
            flags.pair("-iface", interface);
        }
        flags.0
    }

    /// Without `--kill-on-bad-exit`, the other ranks wait for a dead rank until the time limit. Debian's Open MPI
    /// supports only `--mpi=pmix`.
    fn slurm(&self) -> Vec<String> {
        let mut flags = Flags::new(self.layout.processes.map(|number| format!("--ntasks={number}")));
        for word in ["--mpi=pmix", "--kill-on-bad-exit=1", "--distribution=block", "--cpu-bind=none", "--export=ALL"] {
            flags.word(word);
        }
        if !self.layout.is_single() {
            flags.word("--label");
        }
        flags.0
    }

    fn count(&self, flag: &str) -> impl IntoIterator<Item = String> + use<> {
        self.layout.processes.map(|number| [flag.to_owned(), number.to_string()]).into_iter().flatten()
    }

    fn host_list(&self) -> String {
        let slots = self.layout.slots.iter().map(|slots| format!("{}:{}", slots.host, slots.processes));
        slots.collect::<Vec<_>>().join(",")
    }

    fn marker(&self) -> Option<&str> {
        self.settings.iter().find(|(name, _)| *name == MARKER).map(|(_, value)| value)
    }
}

/// Flag list builder.
struct Flags(Vec<String>);

impl Flags {
    fn new(words: impl IntoIterator<Item = String>) -> Self {
        Self(words.into_iter().collect())
    }

    fn word(&mut self, word: &str) -> &mut Self {
        self.0.push(word.to_owned());
        self
    }

    fn pair(&mut self, flag: &str, value: &str) -> &mut Self {
        self.word(flag).word(value)
    }

    fn parameter(&mut self, name: &str, value: &str) -> &mut Self {
        self.word("--mca").pair(name, value)
    }
}

/// Quotes a word for a shell. Flags and host lists stay unquoted; shlex would quote their `=` and `:`.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    // Only NUL bytes cannot be quoted, and arguments contain none.
    shlex::Quoter::new().allow_nul(true).quote(word).map_or_else(|_| word.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Host;
    use crate::layout::{Gpus, Placement};

    fn start(launcher: Launcher, processes: usize, hosts: &str) -> LaunchCommand {
        let hosts: Vec<Host> = hosts.split(',').filter(|h| !h.is_empty()).map(|h| h.parse().unwrap()).collect();
        let placement = match launcher {
            Launcher::Slurm(_) => Placement::Slurm { tasks: None },
            _ if hosts.is_empty() => Placement::ThisHost,
            _ => Placement::Hosts(hosts),
        };
        let layout = Layout::new(Some(processes), &placement, &task(), Gpus { here: 0, shared: false }).unwrap();
        LaunchCommand {
            launcher,
            layout,
            interface: Some("eth0".into()),
            agent: Some("/opt/rsh -q".into()),
            settings: Settings::new("7-8", false, None),
            is_root: true,
        }
    }

    fn task() -> Task {
        Task::new(Some("/opt/nnunet-dist".into()), vec!["train".into(), "-w".into(), "my data".into()])
    }

    #[test]
    fn detects_the_mpi_family_from_the_version() {
        let path = Path::new("mpirun");
        let detect = |text| Launcher::detect(path, text);
        assert_eq!(detect("mpirun (Open MPI) 4.1.4\n"), Some(Launcher::OpenMpi(path.into())));
        assert_eq!(detect("HYDRA build details:\n  Version: 4.0.2"), Some(Launcher::Hydra(path.into())));
        assert_eq!(detect("Intel(R) MPI Library for Linux* OS"), Some(Launcher::Hydra(path.into())));
        assert_eq!(detect("bash: mpirun: nothing of the kind"), None);
    }

    #[test]
    fn open_mpi_over_hosts() {
        let line = start(Launcher::OpenMpi("mpirun".into()), 6, "a:4,b:4").shell_line(&task());
        assert!(
            line.starts_with("NNUNET_LAUNCH_JOB=7-8 mpirun -np 6 --allow-run-as-root --tag-output --host a:4,b:2 ")
        );
        for part in [
            "--map-by slot --bind-to none",
            "--mca plm rsh --mca plm_rsh_agent '/opt/rsh -q'",
            "--mca orte_keep_fqdn_hostnames 1",
            "--mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3",
            "--mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0",
            "--mca mpi_yield_when_idle 1",
            "--mca nnunet_launch_job NNUNET_LAUNCH_JOB=7-8",
            "-x NNUNET_LAUNCH_JOB",
            "-x PATH",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(line.ends_with(" /opt/nnunet-dist train -w 'my data'"), "{line}");
        assert!(!line.contains("--oversubscribe"), "{line}");
    }

    #[test]
    fn a_single_rank_is_not_tagged() {
        let start = start(Launcher::OpenMpi("mpirun".into()), 1, "");
        let line = start.shell_line(&task());
        assert!(line.contains("--oversubscribe") && !line.contains("--tag-output"), "{line}");
        assert_eq!(start.launcher.tags(&start.layout), Tags::None);
    }

    #[test]
    fn hydra_over_hosts() {
        let line = start(Launcher::Hydra("mpirun.mpich".into()), 6, "a:4,b:4").shell_line(&task());
        let flags =
            "-n 6 -prepend-rank -hosts a:4,b:2 -bind-to none -launcher ssh -launcher-exec '/opt/rsh -q' -iface eth0";
        assert_eq!(line, format!("NNUNET_LAUNCH_JOB=7-8 mpirun.mpich {flags} /opt/nnunet-dist train -w 'my data'"));
    }

    #[test]
    fn slurm_kills_all_ranks_if_one_fails() {
        let line = start(Launcher::Slurm("srun".into()), 6, "").shell_line(&task());
        assert!(line.contains("srun --ntasks=6 --mpi=pmix --kill-on-bad-exit=1 "), "{line}");
        assert!(line.contains(" --label /opt/nnunet-dist train"), "{line}");
    }
}
