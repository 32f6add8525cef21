//! An all-reduce that makes progress in small steps, so that it can go on behind a computation.
//!
//! MPI's own `MPI_Iallreduce` would do, but its algorithms for large messages are slower than those of the blocking call
//! (Open MPI reduces in place over a tree), it knows no 16-bit floats, and nobody can tell whom it waits for.
//!
//! The buffer is cut into lanes, each lane into one chunk per rank. A lane is a ring all-reduce of its own (Patarasuk and
//! Yuan 2009, "Bandwidth optimal all-reduce algorithms"): in `n - 1` steps chunks travel around the ring and are summed
//! up on the way, in `n - 1` more the finished chunks travel on to everyone. Each rank sends and receives
//! `2 (n - 1) / n` of the buffer, the least possible. Several lanes are under way at a time, so that one is summed up
//! while the others travel; chunks are small enough to be summed up in the cache.
//!
//! A chunk is summed up in the order of the ring, once, and copied from there: all ranks get the same bits, in every run.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::time::Instant;

use ::mpi::ffi;

use super::calls::{Element, check};
use crate::distributed::{CommError, ReduceOp, Wire};
use nnunet_core::trace::{self, Flight};

/// Values per chunk: large enough that a message's overhead does not count, small enough for the cache.
const CHUNK: usize = 1 << 16;

/// The place of a ring in its job.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub handle: ffi::MPI_Comm,
    pub rank: usize,
    pub world_size: usize,
}

/// An all-reduce under way.
pub(super) struct Ring {
    buffer: Buffer,
    /// Lanes under way, oldest first.
    lanes: Vec<Lane>,
    /// Where the next lane begins.
    next: usize,
    /// Tag of the next lane.
    tag: c_int,
}

/// The smallest upper bound of tags that MPI allows is 32767. Lanes that far apart are never under way together.
const TAGS: c_int = 32_000;

/// The tag after a ring whose first was `tag`; the same on all ranks, for they begin the same rings in the same order.
pub(super) fn tag_after(tag: c_int, len: usize, world_size: usize) -> c_int {
    let lanes = len.div_ceil(CHUNK * world_size);
    ((i64::from(tag) + lanes as i64) % i64::from(TAGS)) as c_int
}

impl Ring {
    /// Begins nothing yet: [`Ring::poll`] does. `operation` is what errors call it.
    pub(super) fn new(
        place: Place,
        mut data: Vec<f32>,
        op: ReduceOp,
        wire: Wire,
        tag: c_int,
        operation: String,
    ) -> Self {
        // Before they are rounded, so that the sum does not leave the range of 16 bits.
        if wire != Wire::F32 && op == ReduceOp::Mean {
            let factor = 1.0 / place.world_size as f32;
            data.iter_mut().for_each(|value| *value *= factor);
        }
        let flight = Some(trace::flight(|| operation.clone()));
        let buffer = Buffer { place, data, op, wire, operation, began: Instant::now(), flight };
        Self { buffer, lanes: Vec::new(), next: 0, tag }
    }

    /// What errors call it.
    pub(super) fn operation(&self) -> &str {
        &self.buffer.operation
    }

    /// When it was asked for.
    pub(super) fn began(&self) -> Instant {
        self.buffer.began
    }

    /// Whether the result is there.
    pub(super) fn is_done(&self) -> bool {
        self.lanes.is_empty() && self.next == self.buffer.data.len()
    }

    /// The result.
    pub(super) fn into_data(self) -> Vec<f32> {
        debug_assert!(self.is_done());
        self.buffer.data
    }

    /// Does what can be done without waiting, with at most `limit` lanes under way. Gives the number of lanes under way
    /// and whether anything has happened.
    pub(super) fn poll(&mut self, limit: usize, spare: &mut Vec<Scratch>) -> Result<(usize, bool), CommError> {
        let Self { buffer, lanes, next, tag } = self;
        let mut moved = false;
        let mut failure = None;
        lanes.retain_mut(|lane| match lane.advance(buffer) {
            Ok(Progress::None) => true,
            Ok(Progress::Step) => {
                moved = true;
                true
            }
            Ok(Progress::Done) => {
                moved = true;
                spare.push(std::mem::take(&mut lane.scratch));
                false
            }
            Err(error) => {
                failure.get_or_insert(error);
                true
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        while lanes.len() < limit && *next < buffer.data.len() {
            let end = buffer.data.len().min(*next + CHUNK * buffer.place.world_size);
            let mut lane = Lane::new(*next..end, *tag, spare.pop().unwrap_or_default(), buffer);
            *next = end;
            *tag = (*tag + 1) % TAGS;
            lane.post(buffer)?;
            lanes.push(lane);
            moved = true;
        }
        if lanes.is_empty() && *next == buffer.data.len() {
            buffer.flight = None;
        }
        Ok((lanes.len(), moved))
    }
}

/// What is reduced, and how.
struct Buffer {
    place: Place,
    data: Vec<f32>,
    op: ReduceOp,
    wire: Wire,
    operation: String,
    began: Instant,
    /// Until it is done.
    flight: Option<Flight>,
}

impl Buffer {
    fn check(&self, code: c_int) -> Result<(), CommError> {
        check(self.place.rank, &self.operation, self.began, code)
    }
}

enum Progress {
    None,
    Step,
    Done,
}

/// Part of the buffer, in one chunk per rank.
struct Lane {
    range: Range<usize>,
    tag: c_int,
    /// `0 .. 2 (n - 1)`; the first half sums up, the second hands on what is finished.
    step: usize,
    /// The receive and the send of the step.
    requests: [ffi::MPI_Request; 2],
    scratch: Scratch,
}

/// A lane's own memory, which the next one takes over: fresh memory would cost more than what is done with it.
#[derive(Default)]
pub(super) struct Scratch {
    /// What arrives to be summed up.
    values: Vec<f32>,
    /// What travels in a 16-bit format.
    sent_bits: Vec<u16>,
    received_bits: Vec<u16>,
}

impl Lane {
    fn new(range: Range<usize>, tag: c_int, mut scratch: Scratch, buffer: &Buffer) -> Self {
        let longest = range.len().div_ceil(buffer.place.world_size);
        let bits = if buffer.wire == Wire::F32 { 0 } else { longest };
        scratch.values.resize(longest, 0.0);
        scratch.sent_bits.resize(bits, 0);
        scratch.received_bits.resize(bits, 0);
        // SAFETY: a constant of the C side.
        let null = unsafe { ffi::RSMPI_REQUEST_NULL };
        Self { range, tag, step: 0, requests: [null; 2], scratch }
    }

    /// Finishes the step if its messages are through, and begins the next.
    fn advance(&mut self, buffer: &mut Buffer) -> Result<Progress, CommError> {
        for request in &mut self.requests {
            let mut flag = 0;
            // SAFETY: the request is null or under way, and its buffers are alive (see `post`).
            let code = unsafe { ffi::MPI_Test(request, &mut flag, ffi::RSMPI_STATUS_IGNORE) };
            buffer.check(code)?;
            if flag == 0 {
                return Ok(Progress::None);
            }
        }
        self.take_in(buffer);
        self.step += 1;
        if self.step == 2 * (buffer.place.world_size - 1) {
            return Ok(Progress::Done);
        }
        self.post(buffer)?;
        Ok(Progress::Step)
    }

    /// Sends a chunk and asks for another.
    fn post(&mut self, buffer: &mut Buffer) -> Result<(), CommError> {
        let Place { handle, rank, world_size } = buffer.place;
        let (outgoing, incoming) = self.chunks(buffer);
        let (sends, receives) = (outgoing.len() as c_int, incoming.len() as c_int);
        let (sent, received, datatype) = if buffer.wire == Wire::F32 {
            let base = buffer.data.as_mut_ptr();
            // What is finished goes straight to its place.
            // SAFETY: both chunks lie within the data.
            let place = unsafe { base.add(incoming.start) };
            let received = if self.is_summing(buffer) { self.scratch.values.as_mut_ptr() } else { place };
            // SAFETY: as above.
            (unsafe { base.add(outgoing.start) }.cast::<c_void>(), received.cast::<c_void>(), f32::datatype())
        } else {
            buffer.wire.encode(&buffer.data[outgoing], &mut self.scratch.sent_bits[..sends as usize]);
            (
                self.scratch.sent_bits.as_mut_ptr().cast(),
                self.scratch.received_bits.as_mut_ptr().cast(),
                u16::datatype(),
            )
        };
        let (next, previous) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
        let [receive, send] = &mut self.requests;
        // SAFETY: the buffers are vectors with room for the counts, which are not resized, and neither read nor written
        // until the requests are through: the two chunks of a step are distinct, as are those of two lanes. A ring is
        // dropped before that only after a fault, when no MPI call is made any more but the one that ends the job.
        unsafe {
            let code = ffi::MPI_Irecv(received, receives, datatype, previous as c_int, self.tag, handle, receive);
            buffer.check(code)?;
            buffer.check(ffi::MPI_Isend(sent, sends, datatype, next as c_int, self.tag, handle, send))
        }
    }

    /// Adds the chunk that has arrived to ours, or puts it in its place.
    fn take_in(&mut self, buffer: &mut Buffer) {
        let (outgoing, incoming) = self.chunks(buffer);
        let is_rounded = buffer.wire != Wire::F32;
        let values = &mut self.scratch.values[..incoming.len()];
        if is_rounded {
            buffer.wire.decode(&self.scratch.received_bits[..incoming.len()], values);
        }
        let ranks = buffer.place.world_size;
        if self.step < ranks - 1 {
            let ours = &mut buffer.data[incoming];
            match buffer.op {
                ReduceOp::Max => ours.iter_mut().zip(values).for_each(|(ours, theirs)| *ours = ours.max(*theirs)),
                _ => ours.iter_mut().zip(values).for_each(|(ours, theirs)| *ours += *theirs),
            }
            // It has come full circle.
            if self.step == ranks - 2 && buffer.op == ReduceOp::Mean && !is_rounded {
                ours.iter_mut().for_each(|value| *value /= ranks as f32);
            }
        } else if is_rounded {
            buffer.data[incoming].copy_from_slice(values);
            if self.step == ranks - 1 {
                // The others got our chunk rounded, so we keep it rounded.
                buffer.wire.decode(&self.scratch.sent_bits[..outgoing.len()], &mut buffer.data[outgoing]);
            }
        }
    }

    fn is_summing(&self, buffer: &Buffer) -> bool {
        self.step < buffer.place.world_size - 1
    }

    /// The chunks that this rank sends and receives in the step, as ranges of the whole buffer: around the ring
    /// backwards, from its own.
    fn chunks(&self, buffer: &Buffer) -> (Range<usize>, Range<usize>) {
        let Place { rank, world_size, .. } = buffer.place;
        let chunk = |steps: usize| {
            let index = (rank + 2 * world_size - steps) % world_size;
            let begin = |index: usize| self.range.start + index * self.range.len() / world_size;
            begin(index)..begin(index + 1)
        };
        (chunk(self.step), chunk(self.step + 1))
    }
}
