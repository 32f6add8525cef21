//! The remote shell: `ssh`, or whatever is called in the same way.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A host that has not answered by then is taken for lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// A program that runs a command on a host: `AGENT HOST COMMAND`, the command being a line for a shell.
#[derive(Debug, Clone)]
pub struct Agent {
    words: Vec<String>,
}

impl Agent {
    /// The agent of a command line, its own flags included; `ssh` without one.
    pub fn new(line: Option<&str>) -> Self {
        // A lost host must not ask for a password, nor hold the connection for minutes.
        let line = line.unwrap_or("ssh -o BatchMode=yes -o ConnectTimeout=5");
        Self { words: line.split_whitespace().map(str::to_owned).collect() }
    }

    /// Runs `script` on all `hosts` at the same time and gives those where it did not succeed within seconds.
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
        // The login shell of the host may be of any kind; `sh` reads the script.
        command.args(flags).arg(host).arg(format!("sh -c {}", shlex::try_quote(script).ok()?));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        Some(command)
    }
}

async fn succeeds(command: Option<Command>) -> bool {
    let Some(mut command) = command else { return false };
    matches!(timeout(PATIENCE, command.status()).await, Ok(Ok(status)) if status.success())
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
        // As ssh does: the words after the host are joined and read by a shell.
        fs::write(&path, "#!/bin/sh\n[ \"$1\" = -q ] && shift\nh=$1; shift\n[ $h != gone ] && eval \"$*\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let agent = Agent::new(Some(&format!("{} -q", path.display())));
        let hosts = ["a", "gone", "b"].map(str::to_owned);
        assert_eq!(agent.run_on_all(&hosts, "test \"$((1 + 1))\" = '2'").await, ["gone"]);
        assert_eq!(agent.run_on_all(&hosts, "false").await.len(), 3);
    }
}
