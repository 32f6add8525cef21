//! Remote shell: `ssh` or a program with the same calling convention.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn hosts_that_do_not_answer_are_named() {
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
}
