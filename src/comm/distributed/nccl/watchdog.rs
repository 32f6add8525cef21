//! Watchdog thread for reductions in flight, since no other thread waits for them.
//!
//! Every [`PERIOD`] it polls NCCL for asynchronous errors (`ncclCommGetAsyncError`) and the device for completed
//! reductions (`cuEventQuery`). On an error, or when the oldest reduction times out, it records the failure and aborts
//! the communicator, which lets the device continue. The next call of the training thread returns the error.
//!
//! NCCL allows one thread at a time inside a communicator, and none concurrent with `ncclCommAbort`. So every NCCL call
//! is made while holding the lock of [`LinkState`], and the thread that aborts first takes the communicator out of it,
//! which happens only once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::ncclComm_t;

use super::library::Nccl;
use crate::cuda::{Context, Event, Stream};
use crate::distributed::{CommError, Fault, HealthMonitor};

/// Poll interval. An event of a completed reduction is reused after at most this time.
const PERIOD: Duration = Duration::from_millis(20);
/// A reduction that takes this long counts as waiting for another rank.
const WAITING: Duration = Duration::from_secs(1);
/// Exit code of a job that may be retried.
const RETRY: i32 = 75;

/// Timeouts for NCCL operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For joining and for the first reduction: connections are made, kernels are compiled, ranks start at different
    /// times.
    pub first: Duration,
    /// For each later reduction, counted from the end of the previous one.
    pub later: Duration,
}

/// State shared by the training thread and the watchdog.
pub(super) struct SharedLink {
    pub(super) rank: usize,
    pub(super) nccl: &'static Nccl,
    pub(super) context: Context,
    /// Stream on which reductions are queued.
    pub(super) stream: Stream,
    state: Mutex<LinkState>,
    /// Diagnoses lost ranks, if available.
    health_monitor: Option<Arc<dyn HealthMonitor>>,
}

pub(super) struct LinkState {
    /// `None` after it has been aborted or destroyed.
    pub(super) comm: Option<ncclComm_t>,
    pub(super) timeouts: Timeouts,
    /// Reductions in flight, in stream order.
    in_flight: VecDeque<Reduction>,
    /// Events of completed reductions, for reuse.
    spare: Vec<Event>,
    /// Number of completed reductions.
    done: u64,
    failure: Option<LinkFailure>,
    stopping: bool,
}

// SAFETY: NCCL allows calls from any thread, one at a time, and the lock around the state guarantees that.
unsafe impl Send for LinkState {}

struct Reduction {
    what: String,
    /// Event that fires when the device has completed the reduction.
    done: Event,
    /// Time since which no earlier reduction has been pending.
    since: Instant,
}

/// A failure, to be returned by the next call.
#[derive(Clone, Debug)]
pub(super) struct LinkFailure {
    pub(super) operation: String,
    pub(super) elapsed: Duration,
    pub(super) reason: String,
}

impl SharedLink {
    pub(super) fn new(
        rank: usize,
        nccl: &'static Nccl,
        context: Context,
        stream: Stream,
        (comm, timeouts): (ncclComm_t, Timeouts),
        health_monitor: Option<Arc<dyn HealthMonitor>>,
    ) -> Arc<Self> {
        let state = LinkState {
            comm: Some(comm),
            timeouts,
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            done: 0,
            failure: None,
            stopping: false,
        };
        Arc::new(Self { rank, nccl, context, stream, state: Mutex::new(state), health_monitor })
    }

    /// Locks the state. A poisoned lock is ignored, because a panic of its holder ends the job.
    pub(super) fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the locked state with its working communicator.
    ///
    /// # Errors
    /// Returns the recorded failure, if any.
    pub(super) fn lock_healthy(&self) -> Result<(MutexGuard<'_, LinkState>, ncclComm_t), CommError> {
        let state = self.lock();
        match (&state.failure, state.comm) {
            (Some(failure), _) => Err(failure.error(self.rank)),
            (None, Some(comm)) => Ok((state, comm)),
            (None, None) => unreachable!("a communicator is given up for a reason"),
        }
    }

    /// Records the failure and aborts the communicator, unless an earlier failure has done so. Returns the first
    /// failure.
    pub(super) fn fail(&self, mut state: MutexGuard<'_, LinkState>, failure: LinkFailure) -> CommError {
        let error = state.failure.get_or_insert(failure).error(self.rank);
        let comm = state.comm.take();
        // Freeing it may take long. No thread can enter NCCL meanwhile, since the state has no communicator.
        drop(state);
        if let Some(comm) = comm {
            tracing::error!("{error}; aborting the NCCL communicator");
            // SAFETY: it was taken out under the lock that all calls hold.
            if let Err(error) = unsafe { self.nccl.abort(comm) } {
                tracing::warn!("rank {}: {error}", self.rank);
            }
        }
        error
    }

    /// Starts the watchdog thread.
    pub(super) fn start_watchdog(self: &Arc<Self>) -> std::io::Result<thread::JoinHandle<()>> {
        let (shared, limit) = (self.clone(), self.lock().limit());
        thread::Builder::new().name("NCCL watchdog".into()).spawn(move || shared.watch(limit))
    }

    /// Runs the watchdog loop. `limit` is the initial timeout: the training thread may be inside NCCL before the state
    /// has been read once.
    fn watch(&self, mut limit: Duration) {
        // NCCL binds the calling thread to the communicator's device itself; a failure shows in the calls below.
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
                    self.poll(state);
                }
                None if seen.elapsed() > limit => self.exit_hung(seen.elapsed()),
                None => {}
            }
            thread::park_timeout(PERIOD);
        }
    }

    /// Polls NCCL and the device once.
    fn poll(&self, mut state: MutexGuard<'_, LinkState>) {
        let Some(comm) = state.comm else { return };
        // SAFETY: the communicator is in the state, whose lock is held.
        if let Err(error) = unsafe { self.nccl.progress(comm) } {
            let failure = state.oldest_failed(error.to_string());
            self.fail(state, failure);
            return;
        }
        match state.remove_completed() {
            Ok(()) => self.check_timeout(state),
            Err(reason) => {
                let failure = state.oldest_failed(reason);
                self.fail(state, failure);
            }
        }
    }

    /// Aborts when the oldest reduction has timed out and no rank is known to be still working.
    fn check_timeout(&self, state: MutexGuard<'_, LinkState>) {
        let Some(oldest) = state.in_flight.front() else {
            self.health_monitor.iter().for_each(|monitor| monitor.set_waiting(None));
            return;
        };
        let (limit, age, number) = (state.limit(), oldest.since.elapsed(), state.done);
        if age >= WAITING {
            self.health_monitor.iter().for_each(|monitor| monitor.set_waiting(Some(&name_of(&oldest.what))));
        }
        if age < limit {
            return;
        }
        // The diagnosis may use the network, so release the lock for it.
        drop(state);
        let diagnosis = match &self.health_monitor {
            Some(monitor) => monitor.diagnose(limit),
            None => Err("timeout: another rank is lost or hung".into()),
        };
        let mut state = self.lock();
        if state.done != number {
            return;
        }
        match (diagnosis, state.in_flight.front_mut()) {
            (Err(reason), _) => {
                let failure = state.oldest_failed(reason);
                self.fail(state, failure);
            }
            (Ok(reason), Some(oldest)) => {
                let waited = oldest.since.elapsed().as_secs_f64();
                tracing::warn!(
                    "rank {}: {} is still waiting after {waited:.0} s: {reason}",
                    self.rank,
                    name_of(&oldest.what)
                );
                oldest.since = Instant::now();
            }
            (Ok(_), None) => {}
        }
    }

    /// Exits the process as a last resort, when the training thread does not return from NCCL or the driver. Aborting a
    /// communicator that another thread is inside of corrupts memory, and there is no caller to return the error to.
    /// The launcher then ends the other ranks.
    fn exit_hung(&self, elapsed: Duration) -> ! {
        let seconds = elapsed.as_secs_f64();
        eprintln!("error: rank {}: a call to NCCL or the CUDA driver has hung for {seconds:.1} s", self.rank);
        // SAFETY: `_exit` has no preconditions. Exit handlers would wait for the hung thread.
        unsafe { libc::_exit(RETRY) }
    }

    /// Makes the watchdog end at its next poll.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
    }
}

impl LinkState {
    /// Adds a reduction in flight whose completion event is `done`.
    pub(super) fn track(&mut self, what: &str, done: Event) {
        self.in_flight.push_back(Reduction { what: what.to_owned(), done, since: Instant::now() });
    }

    /// Returns an event for reuse, if there is one.
    pub(super) fn spare_event(&mut self) -> Option<Event> {
        self.spare.pop()
    }

    /// Returns whether all reductions are complete as of the last poll of the watchdog.
    pub(super) fn all_complete(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Returns the current timeout of a reduction.
    pub(super) fn limit(&self) -> Duration {
        if self.done == 0 { self.timeouts.first } else { self.timeouts.later }
    }

    /// Removes completed reductions.
    fn remove_completed(&mut self) -> Result<(), String> {
        while let Some(oldest) = self.in_flight.front() {
            if !oldest.done.is_complete().map_err(|error| error.to_string())? {
                break;
            }
            self.done += 1;
            self.spare.extend(self.in_flight.pop_front().map(|reduction| reduction.done));
            if let Some(next) = self.in_flight.front_mut() {
                next.since = Instant::now();
            }
        }
        Ok(())
    }

    fn oldest_failed(&self, reason: String) -> LinkFailure {
        match self.in_flight.front() {
            Some(oldest) => LinkFailure { operation: name_of(&oldest.what), elapsed: oldest.since.elapsed(), reason },
            None => LinkFailure { operation: "NCCL (no all-reduce in flight)".into(), elapsed: Duration::ZERO, reason },
        }
    }
}

impl LinkFailure {
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

/// Returns the name of a reduction in errors.
pub(super) fn name_of(what: &str) -> String {
    format!("NCCL all-reduce of {what}")
}
