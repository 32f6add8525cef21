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

use crate::cleanup::Cleaner;
use crate::command::Start;
use crate::error::LaunchError;
use crate::output::{Assembler, Line, Tags};
use crate::patience::{Limits, Patience};
use crate::restart::Attempt;
use crate::signals::{Action, Signals};
use crate::status::{self, Progress, Watcher};
use crate::task::Task;
use crate::verdict::{Cause, End, Words, judge, reason};

/// Time between SIGTERM and SIGKILL.
const TERM_TO_KILL: Duration = Duration::from_secs(3);

/// Time limit for reading the last lines after the child process has ended, and for the end of a killed process.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Prints a line of the launcher itself to standard error, in one write.
pub fn say(text: &str) {
    // If even standard error is closed, there is nowhere to report it.
    let _ = io::stderr().write_all(format!("nnunet-launch: {text}\n").as_bytes());
}

/// State that all attempts of a job share.
#[derive(Debug)]
pub struct Supervisor {
    /// Command that starts the ranks.
    pub start: Start,
    /// Time limits without activity.
    pub limits: Limits,
    /// Kills the remaining processes.
    pub cleaner: Cleaner,
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
        let mut run = Run::start(self, task)?;
        let end = run.watch_over(task, self.limits, signals).await?;
        if !end.is_orderly() {
            self.clean_up().await;
        }
        run.last_words().await;
        self.run_dir = run.run_dir;
        Ok(Attempt {
            verdict: judge(&end, &run.words, signals.asked()),
            reason: reason(&end, &run.words),
            progress: run.progress,
            end,
            duration: began.elapsed(),
        })
    }

    async fn clean_up(&self) {
        let silent = self.cleaner.kill_all().await;
        if !silent.is_empty() {
            say(&format!("no answer from {}: processes of this job may be left there", silent.join(", ")));
        }
    }
}

/// Event from the threads of a run.
enum Event {
    Line(String),
    Progress(Progress),
}

/// Running child process (mpirun or srun), and the known state of the ranks.
struct Run {
    child: Child,
    events: UnboundedReceiver<Event>,
    sender: Option<UnboundedSender<Event>>,
    watcher: Option<Watcher>,
    since: SystemTime,
    run_dir: Option<PathBuf>,
    words: Words,
    progress: Option<Progress>,
}

impl Run {
    fn start(supervisor: &Supervisor, task: &Task) -> Result<Self, LaunchError> {
        let start = &supervisor.start;
        let (sender, events) = unbounded_channel();
        let tags = start.starter.tags(&start.layout);
        let (out, out_writer) = io::pipe()?;
        let (err, err_writer) = io::pipe()?;
        let child = spawn(start, task, out_writer.into(), err_writer.into())?;
        pass_on("stdout", out, io::stdout(), tags, sender.clone())?;
        pass_on("stderr", err, io::stderr(), tags, sender.clone())?;
        let mut run = Self {
            child,
            events,
            sender: Some(sender),
            watcher: None,
            since: SystemTime::now(),
            run_dir: None,
            words: Words::default(),
            progress: None,
        };
        if let Some(run_dir) = &supervisor.run_dir {
            run.watch(run_dir.clone());
        }
        Ok(run)
    }

    async fn watch_over(&mut self, task: &Task, limits: Limits, signals: &mut Signals) -> io::Result<End> {
        // Only training reports progress.
        let limits = Limits { hang: limits.hang.filter(|_| task.is_training()), ..limits };
        let mut patience = Patience::new(limits, Instant::now());
        loop {
            let deadline = patience.deadline();
            tokio::select! {
                status = self.child.wait() => return Ok(end_of(status?)),
                Some(event) = self.events.recv() => {
                    match &event {
                        Event::Line(text) => patience.line(text, Instant::now()),
                        Event::Progress(_) => patience.progress(Instant::now()),
                    }
                    self.note(event);
                }
                signal = signals.next() => match signals.act(signal, task.is_training()) {
                    Action::Save(signal) => self.send(signal),
                    Action::End(signal) => {
                        patience.ends_by(signal, Instant::now());
                        self.send(signal);
                    }
                    Action::Kill => return Ok(self.kill(Cause::Asked(signal), Duration::ZERO).await),
                },
                () = wait_until(deadline) => if let Some(cause) = patience.exhausted(Instant::now()) {
                    say(&format!("ending the job: {cause}"));
                    return Ok(self.kill(cause, TERM_TO_KILL).await);
                }
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Progress(progress) => self.progress = Some(progress),
            Event::Line(text) => {
                self.words.hear(&text);
                if let Some(run_dir) = status::run_dir(&text).filter(|_| self.run_dir.is_none()) {
                    self.watch(run_dir);
                }
            }
        }
    }

    fn watch(&mut self, run_dir: PathBuf) {
        if let Some(sender) = self.sender.clone() {
            // The receiver lives as long as the run; afterwards, progress is not needed.
            let tell = move |progress| drop(sender.send(Event::Progress(progress)));
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

    /// Sends SIGTERM to the child process, and kills its process group after `patience`.
    async fn kill(&mut self, cause: Cause, patience: Duration) -> End {
        let id = self.id();
        if !patience.is_zero() {
            self.send(libc::SIGTERM);
            // In either case, the rest of the group is killed below.
            let _ = timeout(patience, self.child.wait()).await;
        }
        if let Some(id) = id {
            // SAFETY: no preconditions; the child process has its own process group.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
        // Even a killed process does not end while it waits for a dead file system.
        let _ = timeout(LAST_WORDS, self.child.wait()).await;
        End::Killed(cause)
    }

    /// Handles the remaining events of the threads.
    async fn last_words(&mut self) {
        self.watcher = None;
        self.sender = None;
        // Without a sender, `note` starts no further watcher. Orphaned processes may keep a stream open, hence the
        // timeout.
        let all = async {
            while let Some(event) = self.events.recv().await {
                self.note(event);
            }
        };
        let _ = timeout(LAST_WORDS, all).await;
    }

    fn id(&self) -> Option<libc::pid_t> {
        self.child.id().and_then(|id| id.try_into().ok())
    }
}

fn spawn(start: &Start, task: &Task, stdout: Stdio, stderr: Stdio) -> Result<Child, LaunchError> {
    let words = start.words(task);
    let [program, arguments @ ..] = words.as_slice() else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(start.settings.iter()).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    // Own process group: ^C reaches the child process only through the launcher.
    command.process_group(0);
    let launcher = std::process::id();
    // SAFETY: between fork and exec, the closure makes only system calls, which is allowed there.
    unsafe { command.pre_exec(move || die_with(launcher)) };
    command
        .spawn()
        .map_err(|error| LaunchError::Missing(format!("{} cannot be started: {error}", program.to_string_lossy())))
}

/// Requests SIGTERM for this process when the launcher dies, which also ends the ranks.
fn die_with(launcher: u32) -> io::Result<()> {
    // SAFETY: no preconditions.
    let (answer, parent) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM), libc::getppid()) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // The launcher may have died already.
    if u32::try_from(parent) == Ok(launcher) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Copies a stream of the child process to ours on a thread, prefixing lines with ranks.
fn pass_on(
    name: &str,
    from: PipeReader,
    to: impl Write + Send + 'static,
    tags: Tags,
    sender: UnboundedSender<Event>,
) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(move || copy(from, to, tags, &sender)).map(drop)
}

fn copy(from: impl io::Read, mut to: impl Write, tags: Tags, sender: &UnboundedSender<Event>) {
    let mut from = BufReader::new(from);
    let mut assembler = Assembler::new(tags);
    let mut tell = |line: Line| {
        // Each send is independent: the supervision may have ended, or our stream may be closed.
        let _ = sender.send(Event::Line(line.text().into_owned()));
        let _ = line.write(&mut to);
    };
    let mut bytes = Vec::new();
    while from.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
        tell(assembler.line(bytes.strip_suffix(b"\n").unwrap_or(&bytes)));
        bytes.clear();
    }
    assembler.finish().for_each(tell);
}

fn end_of(status: ExitStatus) -> End {
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
