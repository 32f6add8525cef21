//! Command line of the launcher.

use std::ffi::OsString;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::hosts::Host;

const AFTER_HELP: &str = "\
Examples:
  nnunet-launch -- train -w hippocampus -c 3d_fullres -f 0 --device cuda
  nnunet-launch -np 4 -- train -w hippocampus -c 3d_fullres -f 0
  nnunet-launch -H node1:8,node2:8 --max-restarts 3 -- train -w hippocampus -c 3d_fullres -f 0
  nnunet-launch --slurm --max-restarts 3 -- train -w hippocampus -c 3d_fullres -f 0
  nnunet-launch -np 4 --dry-run -- train -w hippocampus -c 3d_fullres -f 0

Signals: USR1 and the first TERM make `train` save a checkpoint and stop (79). INT ends the job.
A second TERM or INT kills it at once.

Exit codes:
  0    the job succeeded
  1    internal error of the launcher or of a rank
  2    usage: an unknown flag, more processes than slots or GPUs
  3    a rank reported invalid data, plans or configuration
  4    mpirun, srun, a device or a library is missing
  75   a rank, a host or the network failed, or the job hung, and no restarts are left: try again
  79   stopped by a signal after saving a checkpoint; continue with `train --resume`
  101  a rank panicked
  130  interrupted (143: terminated) before the job could save";

/// Commands of nnunet-dist that run as several processes.
const COMMANDS: [&str; 6] = ["train", "predict", "preprocess", "plan", "replay", "bench"];

/// Start nnunet-dist on several GPUs and hosts, supervise it, and restart it from the latest checkpoint.
#[derive(Debug, Parser)]
#[command(name = "nnunet-launch", version, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Arguments {
    /// Number of processes; `-np N` also works [default: one per GPU of this host, or the sum of the slots].
    #[arg(short = 'n', long = "np", value_name = "N")]
    pub processes: Option<NonZeroUsize>,

    /// Hosts with their numbers of processes, such as node1:8,node2:8.
    #[arg(short = 'H', long = "host", value_name = "HOST[:N],…", value_delimiter = ',')]
    pub hosts: Vec<Host>,

    /// File with one host per line: `node1 slots=8` or `node1:8`.
    #[arg(long, value_name = "FILE", conflicts_with = "hosts")]
    pub hostfile: Option<PathBuf>,

    /// Start with srun, inside a Slurm allocation.
    #[arg(long, conflicts_with_all = ["hosts", "hostfile", "mpirun", "interface", "rsh_agent"])]
    pub slurm: bool,

    /// Maximum number of restarts after temporary failures.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_restarts: u32,

    /// Seconds before the first restart; doubled for each further one, up to 60.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub backoff: Duration,

    /// Seconds to wait for unreachable hosts before a restart.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub host_wait: Duration,

    /// Seconds without progress after which training is killed; 0 disables the check.
    #[arg(long, value_name = "SECONDS", default_value = "1800", value_parser = seconds)]
    pub hang_timeout: Duration,

    /// Seconds in which a job must end after a rank has reported an error, before it is killed.
    #[arg(long, value_name = "SECONDS", default_value = "8", value_parser = seconds)]
    pub grace: Duration,

    /// Network interface for communication between hosts, such as eth0.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// Remote shell program, called as `PATH HOST COMMAND` [default: ssh].
    #[arg(long, value_name = "PATH")]
    pub rsh_agent: Option<String>,

    /// Program that each rank runs [default: nnunet-dist beside this program, or in the PATH].
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,

    /// The mpirun to use, from Open MPI or MPICH; must match the MPI of nnunet-dist.
    #[arg(long, value_name = "PATH", default_value = "mpirun")]
    pub mpirun: PathBuf,

    /// Print the command line without running it.
    #[arg(long)]
    pub dry_run: bool,

    /// Print a shell completion script and exit.
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub completions: Option<Shell>,

    /// Print the manual page and do nothing else.
    #[arg(long, exclusive = true, hide = true)]
    pub man: bool,

    /// Arguments of nnunet-dist, starting with its command: train, predict, …
    #[arg(last = true, required = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<OsString>,
}

impl Arguments {
    /// Parses a command line, including the program name.
    ///
    /// # Errors
    ///
    /// Returns clap's error, which also represents help and version.
    pub fn from_command_line(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(with_long_np(words))
    }

    /// Returns the command line with the missing `--` in front of the first command of nnunet-dist, if a command line
    /// lacks it.
    pub fn with_separator(words: &[OsString]) -> Option<String> {
        let words: Vec<_> = words.iter().skip(1).map(|word| word.to_string_lossy()).collect();
        if words.iter().any(|word| word == "--") {
            return None;
        }
        let command = words.iter().position(|word| COMMANDS.contains(&word.as_ref()))?;
        let (launcher, rest) = words.split_at(command);
        // Some write the program, too.
        let launcher = launcher.iter().filter(|word| !word.ends_with("nnunet-dist"));
        let launcher: String = launcher.map(|word| format!("{word} ")).collect();
        Some(format!("nnunet-launch {launcher}-- {}", rest.join(" ")))
    }

    /// Generates the completion script for `shell`.
    pub fn completion_script(shell: Shell) -> Vec<u8> {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Self::command(), "nnunet-launch", &mut script);
        script
    }

    /// The manual page, in roff.
    ///
    /// # Errors
    ///
    /// Returns no error of its own; writing to memory does not fail.
    pub fn manual_page() -> io::Result<Vec<u8>> {
        let man = Man::new(Self::command());
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        // `Man::render` would join the lines of the examples.
        let (examples, notes) = AFTER_HELP.split_once("\n\n").unwrap_or((AFTER_HELP, ""));
        for (heading, text) in [("EXAMPLES", examples), ("NOTES", notes)] {
            let mut section = Roff::default();
            section.control("SH", [heading]).control("nf", []);
            text.lines().filter(|line| *line != "Examples:").for_each(|line| _ = section.text([roman(line)]));
            section.control("fi", []).to_writer(&mut page)?;
        }
        man.render_version_section(&mut page)?;
        Ok(page)
    }
}

/// Replaces mpirun's `-np`, which clap cannot parse as a short flag, by `--np`.
fn with_long_np(words: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut is_ours = true;
    words.into_iter().map(move |word| {
        is_ours &= word != "--";
        if is_ours && word == "-np" { "--np".into() } else { word }
    })
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::from_command_line(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_missing_double_dash_is_shown_in_its_place() {
        let corrected =
            |line: &str| Arguments::with_separator(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let line = "nnunet-launch -np 4 train -w w -c 2d -f 0";
        assert!(parse(line).is_err());
        assert_eq!(corrected(line).unwrap(), "nnunet-launch -np 4 -- train -w w -c 2d -f 0");
        assert_eq!(corrected("nnunet-launch -np 4 -- train -w w"), None);
        assert_eq!(corrected("nnunet-launch nnunet-dist train -w w").unwrap(), "nnunet-launch -- train -w w");
        assert_eq!(corrected("nnunet-launch --nonsense"), None);
    }

    #[test]
    fn reads_np_only_before_the_double_dash() {
        let arguments = parse("nnunet-launch -np 3 -H a:2,b -- train -np 4").unwrap();
        assert_eq!(arguments.processes.map(NonZeroUsize::get), Some(3));
        assert_eq!(arguments.hosts.len(), 2);
        assert_eq!(arguments.arguments, ["train", "-np", "4"]);
    }

    /// Returns the `args` of the launcher's container.
    fn kubernetes() -> Vec<OsString> {
        let text = include_str!("../../configs/deploy/kubernetes/train.yaml");
        let lines = text.lines().map(str::trim).skip_while(|line| *line != "args:").skip(1);
        let words = lines.map_while(|line| line.strip_prefix("- ")).map(|word| word.trim_matches('"').into());
        words.collect()
    }

    #[test]
    fn parses_the_kubernetes_example() {
        let words = std::iter::once("nnunet-launch".into()).chain(kubernetes());
        let arguments = Arguments::from_command_line(words).unwrap();
        assert_eq!(arguments.hostfile, Some("/etc/mpi/hostfile".into()));
        assert!(arguments.max_restarts > 0);
        assert_eq!(arguments.arguments[0], "train");
    }

    #[test]
    fn prints_completions_without_a_job() {
        let arguments = parse("nnunet-launch --completions bash").unwrap();
        let script = String::from_utf8(Arguments::completion_script(arguments.completions.unwrap())).unwrap();
        assert!(script.contains("--max-restarts"), "{script}");
        assert!(parse("nnunet-launch --completions bash -- train").is_err());
    }

    #[test]
    fn the_manual_page_has_all_sections_and_needs_no_job() {
        assert!(parse("nnunet-launch --man").unwrap().man);
        let page = String::from_utf8(Arguments::manual_page().unwrap()).unwrap();
        for line in [".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", ".SH EXAMPLES", ".SH VERSION"] {
            assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
        }
        assert!(page.contains("max\\-restarts") && !page.contains("\\-\\-man"), "{page}");
    }

    #[test]
    fn rejects_contradictory_flags() {
        for line in
            ["-np 0 -- train", "-np 2", "--slurm -H a -- train", "-H a --hostfile f -- train", "--grace -1 -- x"]
        {
            assert!(parse(&format!("nnunet-launch {line}")).is_err(), "{line}");
        }
    }
}
