//! One attempt: starts mpirun or srun, supervises it and kills it if necessary.
//!
//! Operations that can block, such as writing to a full terminal or reading a dead file system, run on their own
//! threads. The supervision itself only waits for the end of the child process, events of those threads, signals, and
//! deadlines.

use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::process::{Child, Command};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep_until, timeout};

use crate::attempt::{Attempt, Cause, End, ReportedErrors, classify_exit, reason};
use crate::command::LaunchCommand;
use crate::error::LaunchError;
use crate::orphan_reaper::OrphanReaper;
use crate::output::{Assembler, Line, Tags};
use crate::signals::{Action, Signals};
use crate::status::{self, Progress, Watcher};
use crate::task::Task;
use crate::watchdog::{TimeLimits, Watchdog};

/// Time between SIGTERM and SIGKILL.
const TERM_TO_KILL: Duration = Duration::from_secs(3);

/// Time limit for reading the last lines after the child process has ended, and for the end of a killed process.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Prints a line of the launcher itself to standard error, in one write.
pub fn print_message(text: &str) {
    // If even standard error is closed, there is nowhere to report it.
    let _ = io::stderr().write_all(format!("nnunet-launch: {text}\n").as_bytes());
}

/// State that all attempts of a job share.
#[derive(Debug)]
pub struct Supervisor {
    /// Command that starts the ranks.
    pub command: LaunchCommand,
    /// Time limits without activity.
    pub limits: TimeLimits,
    /// Kills the remaining processes.
    pub orphan_reaper: OrphanReaper,
    /// Run directory, once rank 0 has printed it.
    pub run_dir: Option<PathBuf>,
}

impl Supervisor {
    /// Runs `task` on all ranks until it ends.
    ///
    /// # Errors
    ///
    /// Returns an error if mpirun or srun cannot be started.
    pub async fn attempt(&mut self, task: &Task, signals: &mut Signals) -> Result<Attempt, LaunchError> {
        let began = Instant::now();
        let mut job = RunningJob::start(self, task)?;
        let end = job.watch_over(task, self.limits, signals).await?;
        if !end.all_ranks_ended() {
            self.clean_up().await;
        }
        job.drain().await;
        self.run_dir = job.run_dir;
        Ok(Attempt {
            class: classify_exit(&end, &job.reported_errors, signals.first_signal()),
            reason: reason(&end, &job.reported_errors),
            progress: job.progress,
            end,
            duration: began.elapsed(),
        })
    }

    async fn clean_up(&self) {
        let silent = self.orphan_reaper.kill_all().await;
        if !silent.is_empty() {
            print_message(&format!("no answer from {}: processes of this job may be left there", silent.join(", ")));
        }
    }
}

/// Event from the threads of a running job.
enum OutputEvent {
    Line(String),
    Progress(Progress),
}

/// Running child process (mpirun or srun), and the known state of the ranks.
struct RunningJob {
    child: Child,
    events: UnboundedReceiver<OutputEvent>,
    sender: Option<UnboundedSender<OutputEvent>>,
    watcher: Option<Watcher>,
    since: SystemTime,
    run_dir: Option<PathBuf>,
    reported_errors: ReportedErrors,
    progress: Option<Progress>,
}

impl RunningJob {
    fn start(supervisor: &Supervisor, task: &Task) -> Result<Self, LaunchError> {
        let command = &supervisor.command;
        let (sender, events) = unbounded_channel();
        let tags = command.launcher.tags(&command.layout);
        let (out, out_writer) = io::pipe()?;
        let (err, err_writer) = io::pipe()?;
        let child = spawn(command, task, out_writer.into(), err_writer.into())?;
        forward_output("stdout", out, io::stdout(), tags, sender.clone())?;
        forward_output("stderr", err, io::stderr(), tags, sender.clone())?;
        let mut job = Self {
            child,
            events,
            sender: Some(sender),
            watcher: None,
            since: SystemTime::now(),
            run_dir: None,
            reported_errors: ReportedErrors::default(),
            progress: None,
        };
        if let Some(run_dir) = &supervisor.run_dir {
            job.watch(run_dir.clone());
        }
        Ok(job)
    }

    async fn watch_over(&mut self, task: &Task, limits: TimeLimits, signals: &mut Signals) -> io::Result<End> {
        // Only training reports progress.
        let limits = TimeLimits { hang: limits.hang.filter(|_| task.is_training()), ..limits };
        let mut watchdog = Watchdog::new(limits, Instant::now());
        loop {
            let deadline = watchdog.deadline();
            tokio::select! {
                status = self.child.wait() => return Ok(end_from_status(status?)),
                Some(event) = self.events.recv() => {
                    match &event {
                        OutputEvent::Line(text) => watchdog.line(text, Instant::now()),
                        OutputEvent::Progress(_) => watchdog.progress(Instant::now()),
                    }
                    self.handle_event(event);
                }
                signal = signals.next() => match signals.on_signal(signal, task.is_training()) {
                    Action::Save(signal) => self.send(signal),
                    Action::End(signal) => {
                        watchdog.ends_by(signal, Instant::now());
                        self.send(signal);
                    }
                    Action::Kill => return Ok(self.kill(Cause::Signaled(signal), Duration::ZERO).await),
                },
                () = wait_until(deadline) => if let Some(cause) = watchdog.expired(Instant::now()) {
                    print_message(&format!("ending the job: {cause}"));
                    return Ok(self.kill(cause, TERM_TO_KILL).await);
                }
            }
        }
    }

    fn handle_event(&mut self, event: OutputEvent) {
        match event {
            OutputEvent::Progress(progress) => self.progress = Some(progress),
            OutputEvent::Line(text) => {
                self.reported_errors.record(&text);
                if let Some(run_dir) = status::run_dir(&text).filter(|_| self.run_dir.is_none()) {
                    self.watch(run_dir);
                }
            }
        }
    }

    fn watch(&mut self, run_dir: PathBuf) {
        if let Some(sender) = self.sender.clone() {
            // The receiver lives as long as the run; afterwards, progress is not needed.
            let tell = move |progress| drop(sender.send(OutputEvent::Progress(progress)));
            self.watcher = Some(Watcher::start(&run_dir, self.since, tell));
        }
        self.run_dir = Some(run_dir);
    }

    /// Sends a signal only to the child process, which forwards it to the ranks.
    fn send(&self, signal: i32) {
        if let Some(id) = self.id() {
            // SAFETY: no preconditions; the process has not been waited for, so its ID cannot have been reused.
            unsafe { libc::kill(id, signal) };
        }
    }

    /// Sends SIGTERM to the child process, and kills its process group after `term_timeout`.
    async fn kill(&mut self, cause: Cause, term_timeout: Duration) -> End {
        let id = self.id();
        if !term_timeout.is_zero() {
            self.send(libc::SIGTERM);
            // In either case, the rest of the group is killed below.
            let _ = timeout(term_timeout, self.child.wait()).await;
        }
        if let Some(id) = id {
            // SAFETY: no preconditions; the child process has its own process group.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
        // Even a killed process does not end while it waits for a dead file system.
        let _ = timeout(DRAIN_TIMEOUT, self.child.wait()).await;
        End::Killed(cause)
    }

    /// Handles the remaining events of the threads.
    async fn drain(&mut self) {
        self.watcher = None;
        self.sender = None;
        // Without a sender, `handle_event` starts no further watcher. Orphaned processes may keep a stream open, hence
        // the timeout.
        let all = async {
            while let Some(event) = self.events.recv().await {
                self.handle_event(event);
            }
        };
        let _ = timeout(DRAIN_TIMEOUT, all).await;
    }

    fn id(&self) -> Option<libc::pid_t> {
        self.child.id().and_then(|id| id.try_into().ok())
    }
}

fn spawn(command: &LaunchCommand, task: &Task, stdout: Stdio, stderr: Stdio) -> Result<Child, LaunchError> {
    let words = command.program_and_arguments(task);
    let [program, arguments @ ..] = words.as_slice() else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    let mut process = Command::new(program);
    process.args(arguments).envs(command.settings.iter()).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    // Own process group: ^C reaches the child process only through the launcher.
    process.process_group(0);
    let launcher_pid = std::process::id();
    // SAFETY: between fork and exec, the closure makes only system calls, which is allowed there.
    unsafe { process.pre_exec(move || set_parent_death_signal(launcher_pid)) };
    process
        .spawn()
        .map_err(|error| LaunchError::Missing(format!("{} cannot be started: {error}", program.to_string_lossy())))
}

/// Requests SIGTERM for this process when the launcher dies, which also ends the ranks.
fn set_parent_death_signal(launcher_pid: u32) -> io::Result<()> {
    // SAFETY: no preconditions.
    let (answer, parent) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM), libc::getppid()) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // The launcher may have died already.
    if u32::try_from(parent) == Ok(launcher_pid) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Copies a stream of the child process to ours on a thread, prefixing lines with ranks.
fn forward_output(
    name: &str,
    from: PipeReader,
    to: impl Write + Send + 'static,
    tags: Tags,
    sender: UnboundedSender<OutputEvent>,
) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(move || copy(from, to, tags, &sender)).map(drop)
}

fn copy(from: impl io::Read, mut to: impl Write, tags: Tags, sender: &UnboundedSender<OutputEvent>) {
    let mut from = BufReader::new(from);
    let mut assembler = Assembler::new(tags);
    let mut tell = |line: Line| {
        // Each send is independent: the supervision may have ended, or our stream may be closed.
        let _ = sender.send(OutputEvent::Line(line.text().into_owned()));
        let _ = line.write(&mut to);
    };
    let mut bytes = Vec::new();
    while from.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
        tell(assembler.line(bytes.strip_suffix(b"\n").unwrap_or(&bytes)));
        bytes.clear();
    }
    assembler.finish().for_each(tell);
}

fn end_from_status(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exit(code),
        (None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
