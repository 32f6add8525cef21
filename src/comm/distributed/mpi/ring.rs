//! Ring all-reduce that progresses in small steps, so that it can overlap computation.
//!
//! MPI's own `MPI_Iallreduce` has slower algorithms for large messages than the blocking call (Open MPI reduces in
//! place over a tree), does not support 16-bit floats, and cannot report which rank it waits for.
//!
//! The buffer is divided into segments, each segment into one chunk per rank. A segment is an independent ring
//! all-reduce (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"): in `n - 1` steps chunks travel
//! around the ring and are summed (reduce-scatter), in `n - 1` more the finished chunks travel on to all ranks
//! (all-gather). Each rank sends and receives `2 (n - 1) / n` of the buffer, which is optimal. Several segments are in
//! flight at a time, so that one is summed while the others travel; chunks are small enough to be summed in the cache.
//!
//! Each chunk is summed once, in ring order, and then copied: all ranks get the same bits, in every run.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::time::Instant;

use ::mpi::ffi;

use super::calls::{MpiScalar, check};
use crate::distributed::{CommDtype, CommError, ReduceOp};
use nnunet_core::trace::{self, AsyncSpan};

/// Values per chunk: large enough to amortize the overhead of a message, small enough for the cache.
const CHUNK: usize = 1 << 16;

/// Communicator, rank and size for a ring.
#[derive(Clone, Copy)]
pub(super) struct RingContext {
    pub handle: ffi::MPI_Comm,
    pub rank: usize,
    pub world_size: usize,
}

/// An all-reduce in flight.
pub(super) struct Ring {
    buffer: Buffer,
    /// Segments in flight, oldest first.
    segments: Vec<Segment>,
    /// Offset of the next segment.
    next: usize,
    /// Tag of the next segment.
    tag: c_int,
}

/// Number of tags in use. MPI guarantees an upper bound of at least 32767. Segments that far apart are never in flight
/// together.
const TAGS: c_int = 32_000;

/// Returns the tag after a ring whose first tag was `tag`. All ranks agree, since they start the same rings in the same
/// order.
pub(super) fn tag_after(tag: c_int, len: usize, world_size: usize) -> c_int {
    let segments = len.div_ceil(CHUNK * world_size);
    ((i64::from(tag) + segments as i64) % i64::from(TAGS)) as c_int
}

impl Ring {
    /// Creates the ring without starting it; [`Ring::poll`] does. `operation` is its name in errors.
    pub(super) fn new(
        context: RingContext,
        mut data: Vec<f32>,
        op: ReduceOp,
        comm_dtype: CommDtype,
        tag: c_int,
        operation: String,
    ) -> Self {
        // Scale before rounding, so that the sum stays within the range of the 16-bit format.
        if comm_dtype != CommDtype::F32 && op == ReduceOp::Mean {
            let factor = 1.0 / context.world_size as f32;
            data.iter_mut().for_each(|value| *value *= factor);
        }
        let trace_span = Some(trace::async_span(|| operation.clone()));
        let buffer = Buffer { context, data, op, comm_dtype, operation, began: Instant::now(), trace_span };
        Self { buffer, segments: Vec::new(), next: 0, tag }
    }

    /// Returns the name used in errors.
    pub(super) fn operation(&self) -> &str {
        &self.buffer.operation
    }

    /// Returns the time at which the all-reduce was requested.
    pub(super) fn began(&self) -> Instant {
        self.buffer.began
    }

    /// Returns whether the result is complete.
    pub(super) fn is_done(&self) -> bool {
        self.segments.is_empty() && self.next == self.buffer.data.len()
    }

    /// Returns the result.
    pub(super) fn into_data(self) -> Vec<f32> {
        debug_assert!(self.is_done());
        self.buffer.data
    }

    /// Advances as far as possible without waiting, with at most `limit` segments in flight. Returns the number of
    /// segments in flight and whether anything moved.
    pub(super) fn poll(&mut self, limit: usize, spare: &mut Vec<Scratch>) -> Result<(usize, bool), CommError> {
        let Self { buffer, segments, next, tag } = self;
        let mut moved = false;
        let mut failure = None;
        segments.retain_mut(|segment| match segment.advance(buffer) {
            Ok(Progress::None) => true,
            Ok(Progress::Step) => {
                moved = true;
                true
            }
            Ok(Progress::Done) => {
                moved = true;
                spare.push(std::mem::take(&mut segment.scratch));
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
        while segments.len() < limit && *next < buffer.data.len() {
            let end = buffer.data.len().min(*next + CHUNK * buffer.context.world_size);
            let mut segment = Segment::new(*next..end, *tag, spare.pop().unwrap_or_default(), buffer);
            *next = end;
            *tag = (*tag + 1) % TAGS;
            segment.post(buffer)?;
            segments.push(segment);
            moved = true;
        }
        if segments.is_empty() && *next == buffer.data.len() {
            buffer.trace_span = None;
        }
        Ok((segments.len(), moved))
    }
}

/// The data and its reduction parameters.
struct Buffer {
    context: RingContext,
    data: Vec<f32>,
    op: ReduceOp,
    comm_dtype: CommDtype,
    operation: String,
    began: Instant,
    /// Trace span, open until the all-reduce is complete.
    trace_span: Option<AsyncSpan>,
}

impl Buffer {
    fn check(&self, code: c_int) -> Result<(), CommError> {
        check(self.context.rank, &self.operation, self.began, code)
    }
}

enum Progress {
    None,
    Step,
    Done,
}

/// A segment of the buffer, divided into one chunk per rank.
struct Segment {
    range: Range<usize>,
    tag: c_int,
    /// Step in `0 .. 2 (n - 1)`: the first half reduces, the second distributes finished chunks.
    step: usize,
    /// Receive and send request of the step.
    requests: [ffi::MPI_Request; 2],
    scratch: Scratch,
}

/// Scratch memory of a segment, reused by later segments: allocating it costs more than the work done with it.
#[derive(Default)]
pub(super) struct Scratch {
    /// Received values to be summed.
    values: Vec<f32>,
    /// Chunks in the 16-bit transfer format.
    sent_bits: Vec<u16>,
    received_bits: Vec<u16>,
}

impl Segment {
    fn new(range: Range<usize>, tag: c_int, mut scratch: Scratch, buffer: &Buffer) -> Self {
        let longest = range.len().div_ceil(buffer.context.world_size);
        let bits = if buffer.comm_dtype == CommDtype::F32 { 0 } else { longest };
        scratch.values.resize(longest, 0.0);
        scratch.sent_bits.resize(bits, 0);
        scratch.received_bits.resize(bits, 0);
        // SAFETY: a constant of the C side.
        let null = unsafe { ffi::RSMPI_REQUEST_NULL };
        Self { range, tag, step: 0, requests: [null; 2], scratch }
    }

    /// Completes the step if its messages have arrived, and starts the next.
    fn advance(&mut self, buffer: &mut Buffer) -> Result<Progress, CommError> {
        for request in &mut self.requests {
            let mut flag = 0;
            // SAFETY: the request is null or in flight, and its buffers are alive (see `post`).
            let code = unsafe { ffi::MPI_Test(request, &mut flag, ffi::RSMPI_STATUS_IGNORE) };
            buffer.check(code)?;
            if flag == 0 {
                return Ok(Progress::None);
            }
        }
        self.receive(buffer);
        self.step += 1;
        if self.step == 2 * (buffer.context.world_size - 1) {
            return Ok(Progress::Done);
        }
        self.post(buffer)?;
        Ok(Progress::Step)
    }

    /// Starts sending a chunk and receiving another.
    fn post(&mut self, buffer: &mut Buffer) -> Result<(), CommError> {
        let RingContext { handle, rank, world_size } = buffer.context;
        let (outgoing, incoming) = self.chunks(buffer);
        let (sends, receives) = (outgoing.len() as c_int, incoming.len() as c_int);
        let (sent, received, datatype) = if buffer.comm_dtype == CommDtype::F32 {
            let base = buffer.data.as_mut_ptr();
            // Finished chunks are received directly into the buffer.
            // SAFETY: both chunks are within the data.
            let in_place = unsafe { base.add(incoming.start) };
            let received = if self.is_summing(buffer) { self.scratch.values.as_mut_ptr() } else { in_place };
            // SAFETY: as above.
            (unsafe { base.add(outgoing.start) }.cast::<c_void>(), received.cast::<c_void>(), f32::datatype())
        } else {
            buffer.comm_dtype.encode(&buffer.data[outgoing], &mut self.scratch.sent_bits[..sends as usize]);
            (
                self.scratch.sent_bits.as_mut_ptr().cast(),
                self.scratch.received_bits.as_mut_ptr().cast(),
                u16::datatype(),
            )
        };
        let (next, previous) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
        let [receive, send] = &mut self.requests;
        // SAFETY: the buffers are vectors with room for the counts. They are not resized, read or written until the
        // requests complete: the two chunks of a step are distinct, as are the chunks of two segments. A ring is
        // dropped earlier only after a fault, when the only remaining MPI call is the one that ends the job.
        unsafe {
            let code = ffi::MPI_Irecv(received, receives, datatype, previous as c_int, self.tag, handle, receive);
            buffer.check(code)?;
            buffer.check(ffi::MPI_Isend(sent, sends, datatype, next as c_int, self.tag, handle, send))
        }
    }

    /// Adds the received chunk to ours, or stores it if it is finished.
    fn receive(&mut self, buffer: &mut Buffer) {
        let (outgoing, incoming) = self.chunks(buffer);
        let is_rounded = buffer.comm_dtype != CommDtype::F32;
        let values = &mut self.scratch.values[..incoming.len()];
        if is_rounded {
            buffer.comm_dtype.decode(&self.scratch.received_bits[..incoming.len()], values);
        }
        let ranks = buffer.context.world_size;
        if self.step < ranks - 1 {
            let ours = &mut buffer.data[incoming];
            match buffer.op {
                ReduceOp::Max => ours.iter_mut().zip(values).for_each(|(ours, theirs)| *ours = ours.max(*theirs)),
                _ => ours.iter_mut().zip(values).for_each(|(ours, theirs)| *ours += *theirs),
            }
            // The chunk has passed all ranks.
            if self.step == ranks - 2 && buffer.op == ReduceOp::Mean && !is_rounded {
                ours.iter_mut().for_each(|value| *value /= ranks as f32);
            }
        } else if is_rounded {
            buffer.data[incoming].copy_from_slice(values);
            if self.step == ranks - 1 {
                // The others received our chunk rounded, so keep the rounded values.
                buffer.comm_dtype.decode(&self.scratch.sent_bits[..outgoing.len()], &mut buffer.data[outgoing]);
            }
        }
    }

    fn is_summing(&self, buffer: &Buffer) -> bool {
        self.step < buffer.context.world_size - 1
    }

    /// Returns the ranges of the buffer that this rank sends and receives in the current step. Chunks go backwards
    /// around the ring, starting with the rank's own.
    fn chunks(&self, buffer: &Buffer) -> (Range<usize>, Range<usize>) {
        let RingContext { rank, world_size, .. } = buffer.context;
        let chunk = |steps: usize| {
            let index = (rank + 2 * world_size - steps) % world_size;
            let begin = |index: usize| self.range.start + index * self.range.len() / world_size;
            begin(index)..begin(index + 1)
        };
        (chunk(self.step), chunk(self.step + 1))
    }
}
