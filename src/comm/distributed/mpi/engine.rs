//! Serialized access to MPI, the progress thread that advances buckets during computation, and the [`Reducer`] that
//! starts them.
//!
//! MPI makes progress only inside its own calls, so a bucket in flight needs a thread that keeps calling MPI. The
//! progress thread polls while there are buckets, and sleeps briefly while nothing moves: it costs almost nothing while
//! waiting for the network, and one core while copying dominates.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::calls::{Deadline, PollState, error};
use super::ring::{Ring, RingContext, Scratch, tag_after};
use crate::distributed::health::Health;
use crate::distributed::{CommDtype, CommError, Fault, ReduceOp, Reducer, Work};

/// Maximum number of segments in flight over all buckets: enough to keep a link busy while chunks are summed.
const MAX_SEGMENTS: usize = 8;

/// Number of polls without sleeping after the last progress.
const SPIN_COUNT: u32 = 64;

/// Sleep between polls after that. A 10 Gbit/s link fills a socket buffer in about this time.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Number that identifies an all-reduce in flight.
pub(super) type Ticket = u64;

/// The all-reduces in flight. Only the holder of its lock may call MPI, which is initialized with
/// `MPI_THREAD_SERIALIZED`.
pub(super) struct Engine {
    context: RingContext,
    /// Oldest first. Waiters receive results in this order, regardless of which all-reduce completes first.
    active: VecDeque<(Ticket, Ring)>,
    /// Scratch memory of completed segments, for reuse.
    spare: Vec<Scratch>,
    next_ticket: Ticket,
    next_tag: c_int,
    /// Number of threads that wait for an all-reduce. They poll themselves; the progress thread pauses meanwhile to
    /// avoid contention.
    pub(super) waiting: usize,
    /// Set after a failure. Polling stops because buffers that MPI still references may have been freed.
    broken: bool,
    stopping: bool,
}

/// The engine, shared with the progress thread.
pub(super) struct Shared {
    engine: Mutex<Engine>,
    work: Condvar,
}

impl Shared {
    pub(super) fn new(context: RingContext) -> Arc<Self> {
        let engine = Engine {
            context,
            active: VecDeque::new(),
            spare: Vec::new(),
            next_ticket: 0,
            next_tag: 0,
            waiting: 0,
            broken: false,
            stopping: false,
        };
        Arc::new(Self { engine: Mutex::new(engine), work: Condvar::new() })
    }

    /// Locks the engine. The guard is the permission to call MPI.
    pub(super) fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an all-reduce and wakes the progress thread.
    pub(super) fn begin(&self, data: Vec<f32>, op: ReduceOp, comm_dtype: CommDtype, operation: String) -> Ticket {
        let ticket = self.lock().begin(data, op, comm_dtype, operation);
        self.work.notify_one();
        ticket
    }

    /// Starts the progress thread; [`Shared::stop`] ends it.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be created. All-reduces then make progress only while a caller waits for
    /// them.
    pub(super) fn start_thread(self: &Arc<Self>) -> std::io::Result<thread::JoinHandle<()>> {
        let shared = self.clone();
        thread::Builder::new().name("mpi progress".into()).spawn(move || shared.make_progress())
    }

    /// Ends the progress thread.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
    }

    fn make_progress(&self) {
        let mut idle = 0;
        loop {
            let mut engine = self.lock();
            while !engine.stopping && (engine.active.is_empty() || engine.broken) {
                engine = self.work.wait(engine).unwrap_or_else(PoisonError::into_inner);
                idle = 0;
            }
            if engine.stopping {
                return;
            }
            // The caller that waits for the all-reduce receives the error.
            let moved = engine.waiting == 0 && engine.poll().unwrap_or(false);
            drop(engine);
            idle = if moved { 0 } else { idle + 1 };
            if idle < SPIN_COUNT { thread::yield_now() } else { thread::sleep(POLL_INTERVAL) }
        }
    }
}

impl Engine {
    fn begin(&mut self, data: Vec<f32>, op: ReduceOp, comm_dtype: CommDtype, operation: String) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let tag = self.next_tag;
        self.next_tag = tag_after(tag, data.len(), self.context.world_size);
        self.active.push_back((ticket, Ring::new(self.context, data, op, comm_dtype, tag, operation)));
        // An error is reported to the caller that waits for the result.
        let _ = self.poll();
        ticket
    }

    /// Advances all-reduces as far as possible without blocking; returns whether anything moved.
    ///
    /// # Errors
    /// Returns an error if an MPI call fails; the engine is broken afterwards.
    pub(super) fn poll(&mut self) -> Result<bool, CommError> {
        if self.broken {
            return Ok(false);
        }
        let (mut free, mut moved) = (MAX_SEGMENTS, false);
        for (_, ring) in &mut self.active {
            if free == 0 {
                break;
            }
            match ring.poll(free, &mut self.spare) {
                Ok((used, any)) => (free, moved) = (free - used, moved || any),
                Err(error) => {
                    self.broken = true;
                    return Err(error);
                }
            }
        }
        Ok(moved)
    }

    /// Returns the all-reduce of a ticket, or `None` if it has been taken.
    pub(super) fn ring(&self, ticket: Ticket) -> Option<&Ring> {
        self.active.iter().find(|(number, _)| *number == ticket).map(|(_, ring)| ring)
    }

    /// Takes the result of a ticket, or returns `None` if it is not complete.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Vec<f32>> {
        let index = self.active.iter().position(|(number, ring)| *number == ticket && ring.is_done())?;
        self.active.remove(index).map(|(_, ring)| ring.into_data())
    }

    /// Returns whether an MPI call has failed; the other ranks may then never finish.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Marks the engine as broken; polling stops.
    pub(super) fn mark_broken(&mut self) {
        self.broken = true;
    }

    /// Returns whether an all-reduce is in flight.
    pub(super) fn is_busy(&self) -> bool {
        !self.active.is_empty()
    }
}

// SAFETY: an MPI handle may be a raw pointer, so `Send` is not derived. Any thread may use it, one at a time, and the
// lock around the engine guarantees that.
unsafe impl Send for Engine {}

/// Handle to the engine for starting all-reduces of buckets.
#[derive(Clone)]
pub(super) struct RingReducer {
    pub rank: usize,
    pub shared: Arc<Shared>,
    pub timeout: Arc<Mutex<Duration>>,
    pub health: Arc<Health>,
}

impl Reducer for RingReducer {
    fn start(&self, data: Vec<f32>, op: ReduceOp, comm_dtype: CommDtype, what: &str) -> Box<dyn Work> {
        let ticket = self.shared.begin(data, op, comm_dtype, format!("all-reduce of {what}"));
        Box::new(BucketInFlight { ticket, reducer: self.clone() })
    }
}

/// A bucket in flight.
struct BucketInFlight {
    ticket: Ticket,
    reducer: RingReducer,
}

impl Work for BucketInFlight {
    fn wait(self: Box<Self>) -> Result<Vec<f32>, CommError> {
        let RingReducer { rank, shared, timeout, health } = &self.reducer;
        let mut engine = shared.lock();
        engine.waiting += 1;
        let (operation, began) = match engine.ring(self.ticket) {
            Some(ring) => (ring.operation().to_owned(), ring.began()),
            None => unreachable!("each bucket is taken once, by its only ticket"),
        };
        drop(engine);
        let _waiting = health.waiting(&operation);
        let limit = *timeout.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = Deadline::new(limit, health).poll_until_done(*rank, &operation, began, || {
            let mut engine = shared.lock();
            if engine.is_broken() {
                let reason = "an earlier operation has failed".into();
                return Err(error(*rank, &operation, began, Fault::Lost, reason));
            }
            let moved = engine.poll()?;
            Ok(match engine.take(self.ticket) {
                Some(data) => PollState::Done(data),
                None if moved => PollState::Progressed,
                None => PollState::Unchanged,
            })
        });
        let mut engine = shared.lock();
        engine.waiting -= 1;
        if outcome.is_err() {
            engine.mark_broken();
        }
        outcome
    }
}
