//! Lifecycle of a job: preparation, attempts, restarts, summary.

use std::env;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::arguments::Arguments;
use crate::attempt::{Attempt, NextAction, Policy, RETRY, table};
use crate::command::{LaunchCommand, Launcher};
use crate::error::LaunchError;
use crate::hosts::parse_hostfile;
use crate::layout::{Gpus, Layout, Placement, count_gpus};
use crate::orphan_reaper::{OrphanReaper, RemoteShell};
use crate::signals::Signals;
use crate::supervise::{Supervisor, print_message};
use crate::task::{Settings, Task};
use crate::watchdog::TimeLimits;

/// Timeout for `mpirun --version`; after it, mpirun counts as not working.
const VERSION_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a command line and returns the launcher's exit code.
///
/// # Errors
///
/// Returns an error if nothing could be started; the outcome of a started job is an exit code.
pub async fn run(arguments: Arguments) -> Result<u8, LaunchError> {
    let task = Task::new(arguments.program.clone(), arguments.arguments.clone());
    let marker = marker();
    let command = prepare(&arguments, &task, &marker).await?;
    if let Some(notice) = &command.layout.notice {
        print_message(notice);
    }
    if arguments.dry_run {
        println!("{}", command.shell_line(&task));
        return Ok(0);
    }
    let orphan_reaper =
        OrphanReaper::new(&marker, RemoteShell::new(command.agent.as_deref()), command.layout.remote_hosts());
    let hang = Some(arguments.hang_timeout).filter(|timeout| !timeout.is_zero());
    let limits = TimeLimits { grace: arguments.grace, hang };
    let job = LaunchJob {
        supervisor: Supervisor { command, limits, orphan_reaper, run_dir: None },
        policy: Policy { max_restarts: arguments.max_restarts, backoff: arguments.backoff },
        host_wait: arguments.host_wait,
        signals: Signals::new()?,
        attempts: Vec::new(),
    };
    job.run(task).await
}

/// State of a running job.
struct LaunchJob {
    supervisor: Supervisor,
    policy: Policy,
    host_wait: Duration,
    signals: Signals,
    attempts: Vec<Attempt>,
}

impl LaunchJob {
    async fn run(mut self, mut task: Task) -> Result<u8, LaunchError> {
        loop {
            let attempt = self.supervisor.attempt(&task, &mut self.signals).await?;
            self.attempts.push(attempt);
            match self.policy.next(&self.attempts) {
                NextAction::End(code) => return Ok(self.end(code, None)),
                NextAction::GiveUp(why) => return Ok(self.end(RETRY, Some(&why))),
                NextAction::Restart(wait) => {
                    self.announce(wait);
                    if let Err(why) = self.wait_to_restart(wait).await {
                        return Ok(self.end(RETRY, Some(&why)));
                    }
                    self.supervisor.command.settings.restarted(self.attempts.len());
                    task = task.resumed();
                }
            }
        }
    }

    fn announce(&self, wait: Duration) {
        let Some(attempt) = self.attempts.last() else { return };
        let place = attempt.progress.map(|progress| format!(" at {progress}")).unwrap_or_default();
        print_message(&format!(
            "attempt {} failed{place}: {}; restart {} of {} in {:.0} s",
            self.attempts.len(),
            attempt.reason,
            self.attempts.len(),
            self.policy.max_restarts,
            wait.as_secs_f64()
        ));
    }

    /// Waits for the backoff, and then for unreachable hosts.
    async fn wait_to_restart(&mut self, wait: Duration) -> Result<(), String> {
        self.pause(wait).await?;
        let began = Instant::now();
        for round in 0.. {
            let missing = self.supervisor.orphan_reaper.missing_hosts().await;
            if missing.is_empty() {
                break;
            }
            let missing = missing.join(", ");
            if began.elapsed() >= self.host_wait {
                return Err(format!("no answer from {missing}"));
            }
            print_message(&format!("waiting for {missing}: no answer"));
            let left = self.host_wait.saturating_sub(began.elapsed());
            self.pause(self.policy.wait(round).min(left)).await?;
        }
        Ok(())
    }

    /// Sleeps for a while, unless a signal ends the job.
    async fn pause(&mut self, time: Duration) -> Result<(), String> {
        tokio::select! {
            () = sleep(time) => Ok(()),
            signal = self.signals.next() => Err(format!("stopped by signal {signal}")),
        }
    }

    /// Prints the table of attempts, except after a first attempt that succeeded, and the reason for giving up.
    fn end(&self, code: u8, why: Option<&str>) -> u8 {
        if code != 0 || self.attempts.len() > 1 {
            table(&self.attempts).lines().for_each(print_message);
        }
        if let Some(why) = why {
            print_message(&format!("giving up: {why}"));
        }
        code
    }
}

async fn prepare(arguments: &Arguments, task: &Task, marker: &str) -> Result<LaunchCommand, LaunchError> {
    // SAFETY: no preconditions.
    let is_root = unsafe { libc::geteuid() } == 0;
    let gpus = Gpus {
        here: count_gpus().await,
        shared: env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok_and(|value| value == "1"),
    };
    Ok(LaunchCommand {
        layout: Layout::new(arguments.processes.map(NonZeroUsize::get), &placement(arguments)?, task, gpus)?,
        launcher: launcher(arguments).await?,
        interface: arguments.interface.clone(),
        agent: arguments.rsh_agent.clone(),
        settings: Settings::new(marker, is_root, arguments.interface.as_deref()),
        is_root,
    })
}

fn placement(arguments: &Arguments) -> Result<Placement, LaunchError> {
    if arguments.slurm {
        let tasks = env::var("SLURM_NTASKS").ok().and_then(|tasks| tasks.parse().ok());
        return Ok(Placement::Slurm { tasks });
    }
    let hosts = match &arguments.hostfile {
        Some(path) => {
            let wrong = |defect: String| LaunchError::Usage(format!("--hostfile {}: {defect}", path.display()));
            let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
            // A byte order mark of a Windows editor is no defect.
            parse_hostfile(text.trim_start_matches('\u{feff}')).map_err(wrong)?
        }
        None => arguments.hosts.clone(),
    };
    Ok(if hosts.is_empty() { Placement::ThisHost } else { Placement::Hosts(hosts) })
}

async fn launcher(arguments: &Arguments) -> Result<Launcher, LaunchError> {
    if arguments.slurm {
        return Ok(Launcher::Slurm("srun".into()));
    }
    let mpirun = &arguments.mpirun;
    let version = version(mpirun).await.map_err(|defect| {
        LaunchError::Missing(format!(
            "{}: {defect}; install Open MPI (openmpi-bin) or MPICH (mpich), or pass the program with --mpirun",
            mpirun.display()
        ))
    })?;
    Launcher::detect(mpirun, &version).ok_or_else(|| {
        LaunchError::Missing(format!(
            "{} --version reports neither Open MPI nor MPICH: pass another program with --mpirun",
            mpirun.display()
        ))
    })
}

async fn version(mpirun: &Path) -> Result<String, String> {
    let mut command = Command::new(mpirun);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output =
        timeout(VERSION_TIMEOUT, command.output()).await.map_err(|_| "does not answer to --version".to_owned())?;
    let output = output.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// Returns a job name that is unique on all hosts.
fn marker() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("{}-{now}", std::process::id())
}
