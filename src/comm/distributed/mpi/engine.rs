//! Who may call MPI when, and the thread that moves buckets while the others compute.
//!
//! MPI makes progress only within its own calls, so a bucket that is under way needs somebody who calls. That is a
//! thread of its own, which looks again and again while there are buckets, with short sleeps while nothing moves: it
//! costs next to nothing while the network is what one waits for, and a core where the copies are the work.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::ring::{Place, Ring, Scratch, tag_after};
use crate::distributed::{CommError, ReduceOp, Wire};

/// Lanes under way at a time, over all buckets: enough to keep a link busy while chunks are summed up.
const LANES: usize = 8;

/// How often the thread looks without sleeping after something has moved.
const EAGER: u32 = 64;

/// How long it sleeps then. A link of 10 Gbit/s fills a socket's buffer in about that time.
const NAP: Duration = Duration::from_micros(50);

/// The number of an all-reduce under way.
pub(super) type Ticket = u64;

/// The all-reduces under way. Whoever holds its lock may call MPI: it was started with `MPI_THREAD_SERIALIZED`.
pub(super) struct Engine {
    place: Place,
    /// Oldest first; they end in that order for those who wait, whichever is done first.
    active: VecDeque<(Ticket, Ring)>,
    /// Of lanes that are done.
    spare: Vec<Scratch>,
    next_ticket: Ticket,
    next_tag: c_int,
    /// Those who wait for an all-reduce move it themselves; two that do would only get in each other's way.
    pub(super) waiting: usize,
    /// After a failure nothing is polled any more: buffers that MPI still knows may be gone.
    broken: bool,
    stopping: bool,
}

/// The engine, shared with its thread.
pub(super) struct Shared {
    engine: Mutex<Engine>,
    work: Condvar,
}

impl Shared {
    pub(super) fn new(place: Place) -> Arc<Self> {
        let engine = Engine {
            place,
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

    /// The right to call MPI.
    pub(super) fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an all-reduce and wakes the thread.
    pub(super) fn begin(&self, data: Vec<f32>, op: ReduceOp, wire: Wire, operation: String) -> Ticket {
        let ticket = self.lock().begin(data, op, wire, operation);
        self.work.notify_one();
        ticket
    }

    /// Starts the thread; it ends by [`Shared::stop`].
    ///
    /// # Errors
    /// The system has no more threads. All-reduces then make progress only while somebody waits for them.
    pub(super) fn start_thread(self: &Arc<Self>) -> std::io::Result<thread::JoinHandle<()>> {
        let shared = self.clone();
        thread::Builder::new().name("mpi progress".into()).spawn(move || shared.make_progress())
    }

    /// Ends the thread.
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
            // Whoever waits for the all-reduce will meet the error.
            let moved = engine.waiting == 0 && engine.poll().unwrap_or(false);
            drop(engine);
            idle = if moved { 0 } else { idle + 1 };
            if idle < EAGER { thread::yield_now() } else { thread::sleep(NAP) }
        }
    }
}

impl Engine {
    fn begin(&mut self, data: Vec<f32>, op: ReduceOp, wire: Wire, operation: String) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let tag = self.next_tag;
        self.next_tag = tag_after(tag, data.len(), self.place.world_size);
        self.active.push_back((ticket, Ring::new(self.place, data, op, wire, tag, operation)));
        // A failure is met by whoever waits for it.
        let _ = self.poll();
        ticket
    }

    /// Moves what can be moved; says whether anything did.
    ///
    /// # Errors
    /// Of MPI; the engine is broken then.
    pub(super) fn poll(&mut self) -> Result<bool, CommError> {
        if self.broken {
            return Ok(false);
        }
        let (mut free, mut moved) = (LANES, false);
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

    /// The all-reduce of a ticket, if it is still there.
    pub(super) fn ring(&self, ticket: Ticket) -> Option<&Ring> {
        self.active.iter().find(|(number, _)| *number == ticket).map(|(_, ring)| ring)
    }

    /// Takes the result of a ticket, if it is there.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Vec<f32>> {
        let index = self.active.iter().position(|(number, ring)| *number == ticket && ring.is_done())?;
        self.active.remove(index).map(|(_, ring)| ring.into_data())
    }

    /// Whether a call has failed: the other ranks may never come to the end.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Nothing is polled any more.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
    }

    /// Whether an all-reduce is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.active.is_empty()
    }
}

// SAFETY: an MPI handle may be a raw pointer, which is why the compiler does not see it: but any thread may use it, one
// at a time, and that is what the lock around the engine is for.
unsafe impl Send for Engine {}
