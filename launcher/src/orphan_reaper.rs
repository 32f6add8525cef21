//! Kills orphaned processes: every process with the marker of a job, on all its hosts.

use std::fs;
use std::path::Path;

use crate::agent::RemoteShell;
use crate::environment::MARKER;

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
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn marked(marker: &str) -> Child {
        Command::new("sleep").arg("60").env(MARKER, marker).spawn().unwrap()
    }

    #[test]
    fn the_marked_are_killed_and_nobody_else() {
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
