//! All-reduces of buckets through the engine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::calls::error;
use super::engine::{Shared, Ticket};
use super::wait::{Deadline, PollState};
use crate::distributed::health::Health;
use crate::distributed::{CommDtype, CommError, Fault, ReduceOp, Reducer, Work};

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
