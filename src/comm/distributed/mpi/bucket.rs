//! All-reduces of buckets through the engine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::calls::error;
use super::engine::{Shared, Ticket};
use super::wait::{Look, Patience};
use crate::distributed::health::Health;
use crate::distributed::{CommError, Fault, Pending, ReduceOp, Reducer, Wire};

/// Handle to the engine for starting all-reduces of buckets.
#[derive(Clone)]
pub(super) struct Rings {
    pub rank: usize,
    pub shared: Arc<Shared>,
    pub patience: Arc<Mutex<Duration>>,
    pub health: Arc<Health>,
}

impl Reducer for Rings {
    fn start(&self, data: Vec<f32>, op: ReduceOp, wire: Wire, what: &str) -> Box<dyn Pending> {
        let ticket = self.shared.begin(data, op, wire, format!("all-reduce of {what}"));
        Box::new(Bucket { ticket, rings: self.clone() })
    }
}

/// A bucket in flight.
struct Bucket {
    ticket: Ticket,
    rings: Rings,
}

impl Pending for Bucket {
    fn wait(self: Box<Self>) -> Result<Vec<f32>, CommError> {
        let Rings { rank, shared, patience, health } = &self.rings;
        let mut engine = shared.lock();
        engine.waiting += 1;
        let (operation, began) = match engine.ring(self.ticket) {
            Some(ring) => (ring.operation().to_owned(), ring.began()),
            None => unreachable!("each bucket is taken once, by its only ticket"),
        };
        drop(engine);
        let _waiting = health.waiting(&operation);
        let limit = *patience.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = Patience::new(limit, health).until(*rank, &operation, began, || {
            let mut engine = shared.lock();
            if engine.is_broken() {
                let reason = "an earlier operation has failed".into();
                return Err(error(*rank, &operation, began, Fault::Lost, reason));
            }
            let moved = engine.poll()?;
            Ok(match engine.take(self.ticket) {
                Some(data) => Look::Done(data),
                None if moved => Look::Moving,
                None => Look::Still,
            })
        });
        let mut engine = shared.lock();
        engine.waiting -= 1;
        if outcome.is_err() {
            engine.break_off();
        }
        outcome
    }
}
