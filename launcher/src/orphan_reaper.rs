//! Kills orphaned processes: every process with the marker of a job, on all its hosts.
//!
//! Other hosts are reached through a [`RemoteShell`]: `ssh` or a program with the same calling convention.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::task::MARKER;

/// Timeout after which a host counts as lost.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(5);

/// Program that runs a command on a host: `AGENT HOST COMMAND`, with the command as a line for a shell.
#[derive(Debug, Clone)]
pub struct RemoteShell {
    words: Vec<String>,
}

impl RemoteShell {
    /// Parses the command line of the agent, including its flags; defaults to `ssh`.
    pub fn new(line: Option<&str>) -> Self {
        // A lost host must not prompt for a password or block the connection for minutes.
        let line = line.unwrap_or("ssh -o BatchMode=yes -o ConnectTimeout=5");
        Self { words: line.split_whitespace().map(str::to_owned).collect() }
    }

    /// Runs `script` on all `hosts` in parallel and returns the hosts on which it failed or timed out.
    pub async fn run_on_all(&self, hosts: &[String], script: &str) -> Vec<String> {
        let mut jobs = JoinSet::new();
        for (index, host) in hosts.iter().enumerate() {
            let command = self.command(host, script);
            jobs.spawn(async move { (index, succeeds(command).await) });
        }
        let mut failed = Vec::new();
        while let Some(outcome) = jobs.join_next().await {
            if let Ok((index, false)) = outcome {
                failed.push(index);
            }
        }
        failed.sort_unstable();
        failed.into_iter().filter_map(|index| hosts.get(index).cloned()).collect()
    }

    fn command(&self, host: &str, script: &str) -> Option<Command> {
        let (program, flags) = self.words.split_first()?;
        let mut command = Command::new(program);
        // The login shell of the host may be of any kind, so `sh` runs the script.
        command.args(flags).arg(host).arg(format!("sh -c {}", shlex::try_quote(script).ok()?));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        Some(command)
    }
}

async fn succeeds(command: Option<Command>) -> bool {
    let Some(mut command) = command else { return false };
    matches!(timeout(REMOTE_TIMEOUT, command.status()).await, Ok(Ok(status)) if status.success())
}

/// Kills the remaining processes of a job.
#[derive(Debug)]
pub struct OrphanReaper {
    marker: String,
    agent: RemoteShell,
    hosts: Vec<String>,
}

impl OrphanReaper {
    /// Creates a reaper for the job with this marker, on this host and on `hosts`.
    pub fn new(marker: &str, agent: RemoteShell, hosts: Vec<String>) -> Self {
        Self { marker: marker.to_owned(), agent, hosts }
    }

    /// Kills all processes of the job on this and the other hosts, with a timeout. Returns the hosts that did not
    /// answer.
    pub async fn kill_all(&self) -> Vec<String> {
        kill_here(&format!("{MARKER}={}", self.marker));
        self.agent.run_on_all(&self.hosts, &script(&self.marker)).await
    }

    /// Returns the hosts that do not answer.
    pub async fn missing_hosts(&self) -> Vec<String> {
        self.agent.run_on_all(&self.hosts, "true").await
    }
}

/// Kills the processes of this host that have `mark` in their environment or on their command line.
fn kill_here(mark: &str) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    let id = |name: &str| name.parse::<i32>().ok();
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str().and_then(id));
    for id in ids.filter(|id| id.unsigned_abs() != std::process::id()) {
        let folder = Path::new("/proc").join(id.to_string());
        if ["environ", "cmdline"].iter().any(|file| contains(&folder.join(file), mark)) {
            // SAFETY: no preconditions. The process belonged to this job a moment ago.
            unsafe { libc::kill(id, libc::SIGKILL) };
        }
    }
}

fn contains(path: &Path, mark: &str) -> bool {
    // Processes of other users cannot be read and do not belong to this job.
    fs::read(path).is_ok_and(|bytes| bytes.windows(mark.len()).any(|window| window == mark.as_bytes()))
}

/// Returns a shell script that does the same as [`kill_here`] on another host.
///
/// The script assembles the mark from two parts, so that shells with the script on their command line do not contain
/// the mark. The process list is expanded before the first `grep`, which does contain it, starts.
fn script(marker: &str) -> String {
    format!(
        "m={MARKER}; m=\"$m={marker}\"; \
         for p in /proc/[0-9]*; do grep -qsF \"$m\" \"$p/environ\" \"$p/cmdline\" && kill -KILL \"${{p#/proc/}}\"; done; true"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    #[tokio::test]
    async fn names_hosts_that_do_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        // Like ssh, joins the words after the host and passes them to a shell.
        fs::write(&path, "#!/bin/sh\n[ \"$1\" = -q ] && shift\nh=$1; shift\n[ $h != gone ] && eval \"$*\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let agent = RemoteShell::new(Some(&format!("{} -q", path.display())));
        let hosts = ["a", "gone", "b"].map(str::to_owned);
        assert_eq!(agent.run_on_all(&hosts, "test \"$((1 + 1))\" = '2'").await, ["gone"]);
        assert_eq!(agent.run_on_all(&hosts, "false").await.len(), 3);
    }

    fn marked(marker: &str) -> Child {
        Command::new("sleep").arg("60").env(MARKER, marker).spawn().unwrap()
    }

    #[test]
    fn kills_only_processes_with_the_marker() {
        let id = std::process::id();
        let (one, other) = (format!("{id}-test-1"), format!("{id}-test-2"));
        let (mut environment, mut bystander) = (marked(&one), marked(&other));
        let mut waits = Command::new("sh");
        waits.args(["-c", "read line", &format!("{MARKER}={one}")]).stdin(Stdio::piped());
        let mut argument = waits.spawn().unwrap();
        kill_here(&format!("{MARKER}={one}"));
        assert_eq!(environment.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(argument.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(bystander.try_wait().unwrap().is_none());

        let status = Command::new("sh").args(["-c", &script(&other)]).status().unwrap();
        assert!(status.success(), "the script killed itself: {status}");
        assert_eq!(bystander.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
