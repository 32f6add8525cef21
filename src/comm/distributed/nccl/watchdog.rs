//! The thread that looks after reductions under way, since nobody waits for them.
//!
//! Every [`PERIOD`] it asks NCCL for errors of its own threads (`ncclCommGetAsyncError`) and the device for reductions
//! that are done (`cuEventQuery`). On an error, or when the oldest reduction is late, it remembers what happened and
//! aborts the communicator, which makes the device go on; the next call of the thread that trains meets the error.
//!
//! NCCL allows one thread at a time inside a communicator, and none beside `ncclCommAbort`. So whoever calls NCCL holds
//! the lock of [`State`], and whoever aborts has taken the communicator out of it before: once, whoever comes first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::ncclComm_t;

use super::library::Nccl;
use super::link::Timeouts;
use crate::cuda::{Context, Event, Stream};
use crate::distributed::{CommError, Fault, Witness};

/// How often it looks. Also how long an event of a reduction that is done stays out of use.
const PERIOD: Duration = Duration::from_millis(20);
/// A reduction that takes so long waits for another rank.
const WAITING: Duration = Duration::from_secs(1);
/// The exit code of a job that may be tried again.
const RETRY: i32 = 75;

/// What the thread that trains and the watchdog share.
pub(super) struct Watched {
    pub(super) rank: usize,
    pub(super) nccl: &'static Nccl,
    pub(super) context: Context,
    /// On which reductions are queued.
    pub(super) stream: Stream,
    state: Mutex<State>,
    /// Knows which rank is lost.
    witness: Option<Arc<dyn Witness>>,
}

pub(super) struct State {
    /// `None` when it has been aborted or destroyed.
    pub(super) comm: Option<ncclComm_t>,
    pub(super) timeouts: Timeouts,
    /// In the order of the stream.
    under_way: VecDeque<Reduction>,
    /// Events of reductions that are done.
    spare: Vec<Event>,
    /// How many reductions are done.
    done: u64,
    broken: Option<Broken>,
    stopping: bool,
}

// SAFETY: NCCL allows calls from any thread, one at a time, which is what the lock around the state is for.
unsafe impl Send for State {}

struct Reduction {
    what: String,
    /// Happens when the device is done with it.
    done: Event,
    /// When it had nothing before it any more.
    since: Instant,
}

/// What went wrong, to be told by the next call.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) operation: String,
    pub(super) elapsed: Duration,
    pub(super) reason: String,
}

impl Watched {
    pub(super) fn new(
        rank: usize,
        nccl: &'static Nccl,
        context: Context,
        stream: Stream,
        (comm, timeouts): (ncclComm_t, Timeouts),
        witness: Option<Arc<dyn Witness>>,
    ) -> Arc<Self> {
        let state = State {
            comm: Some(comm),
            timeouts,
            under_way: VecDeque::new(),
            spare: Vec::new(),
            done: 0,
            broken: None,
            stopping: false,
        };
        Arc::new(Self { rank, nccl, context, stream, state: Mutex::new(state), witness })
    }

    /// A panic of whoever held the lock has ended the job.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with a communicator that works.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn healthy(&self) -> Result<(MutexGuard<'_, State>, ncclComm_t), CommError> {
        let state = self.lock();
        match (&state.broken, state.comm) {
            (Some(broken), _) => Err(broken.error(self.rank)),
            (None, Some(comm)) => Ok((state, comm)),
            (None, None) => unreachable!("a communicator is given up for a reason"),
        }
    }

    /// Remembers the first thing that went wrong and aborts the communicator, unless somebody has done so before. Returns
    /// what is remembered.
    pub(super) fn break_off(&self, mut state: MutexGuard<'_, State>, broken: Broken) -> CommError {
        let error = state.broken.get_or_insert(broken).error(self.rank);
        let comm = state.comm.take();
        // Freeing it may take long. Nobody can enter NCCL meanwhile, for want of a communicator.
        drop(state);
        if let Some(comm) = comm {
            tracing::error!("{error}; aborting the NCCL communicator");
            // SAFETY: it was taken out under the lock, which all calls hold.
            if let Err(error) = unsafe { self.nccl.abort(comm) } {
                tracing::warn!("rank {}: {error}", self.rank);
            }
        }
        error
    }

    /// Starts the thread.
    pub(super) fn start_watchdog(self: &Arc<Self>) -> std::io::Result<thread::JoinHandle<()>> {
        let (watched, limit) = (self.clone(), self.lock().limit());
        thread::Builder::new().name("NCCL watchdog".into()).spawn(move || watched.watch(limit))
    }

    /// `limit` is the one to begin with: the thread that trains may be in NCCL before the state has been seen once.
    fn watch(&self, mut limit: Duration) {
        // NCCL binds its caller to the communicator's device itself; a failure shows in the calls below.
        let _ = self.context.make_current();
        let mut seen = Instant::now();
        loop {
            let state = match self.state.try_lock() {
                Ok(state) => Some(state),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            match state {
                Some(state) if state.stopping => return,
                Some(state) => {
                    (seen, limit) = (Instant::now(), state.limit());
                    self.look(state);
                }
                None if seen.elapsed() > limit => self.leave(seen.elapsed()),
                None => {}
            }
            thread::park_timeout(PERIOD);
        }
    }

    /// Looks once.
    fn look(&self, mut state: MutexGuard<'_, State>) {
        let Some(comm) = state.comm else { return };
        // SAFETY: the communicator is in the state, whose lock is held.
        if let Err(error) = unsafe { self.nccl.progress(comm) } {
            let broken = state.oldest_failed(error.to_string());
            self.break_off(state, broken);
            return;
        }
        match state.take_what_is_done() {
            Ok(()) => self.judge_oldest(state),
            Err(reason) => {
                let broken = state.oldest_failed(reason);
                self.break_off(state, broken);
            }
        }
    }

    /// Breaks off when the oldest reduction is late and no rank is known to be at work still.
    fn judge_oldest(&self, state: MutexGuard<'_, State>) {
        let Some(oldest) = state.under_way.front() else {
            self.witness.iter().for_each(|witness| witness.waits(None));
            return;
        };
        let (limit, age, number) = (state.limit(), oldest.since.elapsed(), state.done);
        if age >= WAITING {
            self.witness.iter().for_each(|witness| witness.waits(Some(&name_of(&oldest.what))));
        }
        if age < limit {
            return;
        }
        // It may ask over the network, for which nobody else must wait.
        drop(state);
        let verdict = match &self.witness {
            Some(witness) => witness.verdict(limit),
            None => Err("the deadline has passed: another rank is lost or hangs".into()),
        };
        let mut state = self.lock();
        if state.done != number {
            return;
        }
        match (verdict, state.under_way.front_mut()) {
            (Err(reason), _) => {
                let broken = state.oldest_failed(reason);
                self.break_off(state, broken);
            }
            (Ok(reason), Some(oldest)) => {
                let waited = oldest.since.elapsed().as_secs_f64();
                tracing::warn!(
                    "rank {}: {} has taken {waited:.0} s so far: {reason}",
                    self.rank,
                    name_of(&oldest.what)
                );
                oldest.since = Instant::now();
            }
            (Ok(_), None) => {}
        }
    }

    /// The last resort, where the thread that trains does not come back from NCCL or the driver: aborting a communicator
    /// that another thread is in corrupts memory, and the error has nobody to return to. The launcher ends the others.
    fn leave(&self, elapsed: Duration) -> ! {
        let seconds = elapsed.as_secs_f64();
        eprintln!("error: rank {}: a call of NCCL or the CUDA driver has hung for {seconds:.1} s", self.rank);
        // SAFETY: no preconditions. Exit handlers would wait for the thread that hangs.
        unsafe { libc::_exit(RETRY) }
    }

    /// Lets the watchdog end at its next look.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
    }
}

impl State {
    /// Notes a reduction whose end is `done`.
    pub(super) fn watch_for(&mut self, what: &str, done: Event) {
        self.under_way.push_back(Reduction { what: what.to_owned(), done, since: Instant::now() });
    }

    /// An event that is not in use.
    pub(super) fn spare_event(&mut self) -> Option<Event> {
        self.spare.pop()
    }

    /// Whether the device is done with all reductions, as far as the watchdog has looked.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// How long a reduction may take now.
    pub(super) fn limit(&self) -> Duration {
        if self.done == 0 { self.timeouts.first } else { self.timeouts.later }
    }

    /// Lets go of the reductions that are done.
    fn take_what_is_done(&mut self) -> Result<(), String> {
        while let Some(oldest) = self.under_way.front() {
            if !oldest.done.has_happened().map_err(|error| error.to_string())? {
                break;
            }
            self.done += 1;
            self.spare.extend(self.under_way.pop_front().map(|reduction| reduction.done));
            if let Some(next) = self.under_way.front_mut() {
                next.since = Instant::now();
            }
        }
        Ok(())
    }

    fn oldest_failed(&self, reason: String) -> Broken {
        match self.under_way.front() {
            Some(oldest) => Broken { operation: name_of(&oldest.what), elapsed: oldest.since.elapsed(), reason },
            None => Broken { operation: "NCCL between two all-reduces".into(), elapsed: Duration::ZERO, reason },
        }
    }
}

impl Broken {
    fn error(&self, rank: usize) -> CommError {
        CommError {
            rank,
            operation: self.operation.clone(),
            elapsed_s: self.elapsed.as_secs_f64(),
            fault: Fault::Lost,
            reason: self.reason.clone(),
        }
    }
}

/// A reduction as errors name it.
pub(super) fn name_of(what: &str) -> String {
    format!("NCCL all-reduce of {what}")
}
