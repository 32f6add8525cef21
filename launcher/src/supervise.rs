//! One attempt: the starter is started, watched and, if need be, killed.
//!
//! Whatever can block, be it a full terminal or a dead file system, does so on a thread of its own. The supervision
//! itself only waits for the end of the starter, news of those threads, signals, and deadlines.

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

/// Between asking the starter to end and killing it.
const TERM_TO_KILL: Duration = Duration::from_secs(3);

/// For the last lines, once the starter is gone; and for a killed process to be gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Prints a line of the launcher itself, in one write.
pub fn say(text: &str) {
    // Where not even stderr is left there is nobody to tell.
    let _ = io::stderr().write_all(format!("nnunet-launch: {text}\n").as_bytes());
}

/// What all attempts of a job have in common.
#[derive(Debug)]
pub struct Supervisor {
    /// How the ranks are started.
    pub start: Start,
    /// How long they may do nothing.
    pub limits: Limits,
    /// Who ends what is left of them.
    pub cleaner: Cleaner,
    /// The run directory, once rank 0 has named it.
    pub run_dir: Option<PathBuf>,
}

impl Supervisor {
    /// Runs `task` on all ranks, to whatever end.
    ///
    /// # Errors
    ///
    /// The starter cannot be started.
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

/// What the threads of a run tell.
enum Event {
    Line(String),
    Progress(Progress),
}

/// The starter while it runs, and what is known about the ranks.
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
        // Only a training shows its progress.
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
            // The receiver lives as long as the run; after it nobody wants the news.
            let tell = move |progress| drop(sender.send(Event::Progress(progress)));
            self.watcher = Some(Watcher::start(&run_dir, self.since, tell));
        }
        self.run_dir = Some(run_dir);
    }

    /// Sends a signal to the starter alone; the ranks get it from there.
    fn send(&self, signal: i32) {
        if let Some(id) = self.id() {
            // SAFETY: no preconditions; the process has not been waited for, so that the number is its own.
            unsafe { libc::kill(id, signal) };
        }
    }

    /// Asks the starter to end, and kills its process group if it has not after `patience`.
    async fn kill(&mut self, cause: Cause, patience: Duration) -> End {
        let id = self.id();
        if !patience.is_zero() {
            self.send(libc::SIGTERM);
            // Whether it ended or not, what is left of its group is killed below.
            let _ = timeout(patience, self.child.wait()).await;
        }
        if let Some(id) = id {
            // SAFETY: no preconditions; the group is that of the starter, which has its own.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
        // Not even a killed process ends while it waits for a dead file system.
        let _ = timeout(LAST_WORDS, self.child.wait()).await;
        End::Killed(cause)
    }

    /// Takes in what the threads still have to tell.
    async fn last_words(&mut self) {
        self.watcher = None;
        self.sender = None;
        // The sender being gone, `note` starts no further watcher; processes that were left may hold a stream open.
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
    // A group of its own: ^C reaches the starter through the launcher only.
    command.process_group(0);
    let launcher = std::process::id();
    // SAFETY: between fork and exec only system calls are made, which is allowed there.
    unsafe { command.pre_exec(move || die_with(launcher)) };
    command
        .spawn()
        .map_err(|error| LaunchError::Missing(format!("{} cannot be started: {error}", program.to_string_lossy())))
}

/// Lets this process be terminated when the launcher dies; the ranks then end with it.
fn die_with(launcher: u32) -> io::Result<()> {
    // SAFETY: no preconditions.
    let (answer, parent) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM), libc::getppid()) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // It may have died already.
    if u32::try_from(parent) == Ok(launcher) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Copies a stream of the starter to ours, with ranks in front of its lines, on a thread.
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
        // The supervision hears the line even where nobody reads ours any more; and the reverse at the very end.
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
