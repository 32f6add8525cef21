//! NCCL connection of this rank's GPU with the GPUs of the other ranks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};

use super::library::{INSTALL, Nccl, NcclError, Progress};
use super::watchdog::{LinkFailure, SharedLink, Timeouts, name_of};
use crate::cuda::{Context, Driver, DriverError, Event};
use crate::distributed::placement::{check_gpus_not_shared, choose_gpu, local_rank_on_host};
use crate::distributed::{BufferDtype, CommError, Communicator, DeviceBuffer, DeviceCollectives, Fault, ReduceOp};

/// Poll interval for operations that take seconds and happen once per run.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

const JOINING: &str = "NCCL initialization";

/// A GPU that is connected with the GPUs of the other ranks.
///
/// Dropping it finalizes the NCCL communicator, or aborts it after a failure.
pub struct NcclLink {
    shared: Arc<SharedLink>,
    watchdog: Option<JoinHandle<()>>,
    /// Event that makes reductions wait for the computation. One event is enough: a wait covers what was last recorded
    /// before it.
    computed: Event,
    /// Event that makes the computation wait for reductions.
    reduced: Event,
    /// Whether reductions have been queued that the computation does not wait for yet.
    unfinished: AtomicBool,
    gpu: usize,
}

/// Selects this rank's GPU and returns its index among the GPUs visible to the process, and its UUID. A collective of
/// `host`.
///
/// # Errors
/// Returns [`Fault::Unavailable`] if there is no CUDA driver, or no GPU for this rank alone.
pub fn own_gpu(host: &dyn Communicator) -> Result<(usize, String), CommError> {
    let began = Instant::now();
    let unavailable = |reason: String| failure(host.rank(), "GPU selection", began, Fault::Unavailable, reason);
    let driver = Driver::open().map_err(unavailable)?;
    let visible = driver.devices().map_err(|error| unavailable(error.to_string()))?;
    let gpu = choose_gpu(host, local_rank_on_host(host)?, visible)?;
    let uuid = driver.uuid(gpu).map_err(|error| unavailable(error.to_string()))?;
    check_gpus_not_shared(host, &uuid)?;
    Ok((gpu, uuid))
}

impl NcclLink {
    /// Selects this rank's GPU and connects it with the GPUs of the other ranks. A collective of `host`.
    ///
    /// # Errors
    /// Returns [`Fault::Unavailable`] if NCCL, the driver or a GPU for this rank alone is missing, or if NCCL reports
    /// an error; [`Fault::Lost`] if another rank does not join. Other ranks may still wait for this one, so the caller
    /// must end the job.
    pub fn join(host: &dyn Communicator, timeouts: Timeouts) -> Result<Self, CommError> {
        let began = Instant::now();
        let unavailable = |reason: String| failure(host.rank(), JOINING, began, Fault::Unavailable, reason);
        let nccl = Nccl::open().map_err(|reason| unavailable(format!("{reason}: {INSTALL}")))?;
        let driver = Driver::open().map_err(unavailable)?;
        let (gpu, uuid) = own_gpu(host)?;
        let context = Context::primary(driver, gpu).map_err(|error| unavailable(error.to_string()))?;
        let link = Self::connect(host, nccl, context, gpu, timeouts)?;
        tracing::info!(
            "rank {}: GPU {gpu} ({uuid}) initialized NCCL {} ({}) in {:.1} s",
            host.rank(),
            nccl.version(),
            nccl.path.display(),
            began.elapsed().as_secs_f64()
        );
        Ok(link)
    }

    fn connect(
        host: &dyn Communicator,
        nccl: &'static Nccl,
        context: Context,
        gpu: usize,
        timeouts: Timeouts,
    ) -> Result<Self, CommError> {
        let began = Instant::now();
        let unavailable =
            |error: DriverError| failure(host.rank(), JOINING, began, Fault::Unavailable, error.to_string());
        let stream = context.stream().map_err(unavailable)?;
        let (computed, reduced) = (context.event().map_err(unavailable)?, context.event().map_err(unavailable)?);
        let id = share_id(host, nccl)?;
        let comm = join_communicator(host, nccl, id, timeouts.first)?;
        let shared = SharedLink::new(host.rank(), nccl, context, stream, (comm, timeouts), host.health_monitor());
        let watchdog = shared.start_watchdog().map_err(|error| {
            let reason = format!("cannot start the NCCL watchdog thread: {error}");
            failure(host.rank(), JOINING, began, Fault::Unavailable, reason)
        });
        let mut link = Self { shared, watchdog: None, computed, reduced, unfinished: AtomicBool::new(false), gpu };
        link.watchdog = Some(watchdog?);
        Ok(link)
    }

    /// Returns the index of the GPU among those visible to this process; the compute backend must use the same one.
    pub fn gpu(&self) -> usize {
        self.gpu
    }

    /// Sets the timeout of later reductions.
    pub fn set_timeout(&self, timeout: Duration) {
        self.shared.lock().timeouts = Timeouts { first: timeout, later: timeout };
    }

    /// Makes later reductions wait for all work submitted to the compute streams so far.
    fn follow_computation(&self) -> Result<(), DriverError> {
        let context = &self.shared.context;
        context.make_current()?;
        // Must not hold the lock: without context events `record` blocks. If it waits for a reduction that never
        // completes, it returns only after the watchdog has aborted that reduction.
        context.record(&self.computed)?;
        if context.has_events() { self.shared.stream.wait_for(&self.computed) } else { Ok(()) }
    }

    /// Queues the reduction and waits until NCCL has accepted it, which is immediate except for the first ones.
    fn queue(&self, buffer: DeviceBuffer, op: ReduceOp, what: &str) -> Result<(), CommError> {
        let began = Instant::now();
        let (nccl, stream) = (self.shared.nccl, self.shared.stream.handle.cast());
        let failure = |reason: String| LinkFailure { operation: name_of(what), elapsed: began.elapsed(), reason };
        let (mut state, comm) = self.shared.lock_healthy()?;
        let (dtype, op) = (data_type(buffer.dtype), operation(op));
        // SAFETY: the communicator is in the state, whose lock is held; the caller guarantees the buffer.
        let mut progress = unsafe { nccl.all_reduce(buffer.pointer, buffer.len, dtype, op, comm, stream) };
        while let Ok(Progress::Going) = progress {
            if began.elapsed() >= state.limit() {
                let reason = "timeout while NCCL connects: another rank is lost or hung".into();
                return Err(self.shared.fail(state, failure(reason)));
            }
            drop(state);
            thread::sleep(POLL_INTERVAL);
            let comm;
            (state, comm) = self.shared.lock_healthy()?;
            // SAFETY: as above.
            progress = unsafe { nccl.progress(comm) };
        }
        let queued = progress.map_err(|error| error.to_string()).and_then(|_| {
            let done = state.spare_event().map_or_else(|| self.shared.context.event(), Ok);
            let done = done.and_then(|done| self.shared.stream.record(&done).map(|()| done));
            done.map_err(|error| error.to_string())
        });
        match queued {
            Ok(done) => state.track(what, done),
            Err(reason) => return Err(self.shared.fail(state, failure(reason))),
        }
        self.unfinished.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the computation wait for the reductions by stream order on the device.
    fn order_computation_after(&self) -> Result<(), DriverError> {
        self.shared.context.make_current()?;
        self.shared.stream.record(&self.reduced)?;
        self.shared.context.wait_for(&self.reduced)
    }

    /// Blocks until the reductions are complete or have failed.
    fn wait_on_host(&self) -> Result<(), CommError> {
        loop {
            let (state, _) = self.shared.lock_healthy()?;
            if state.all_complete() {
                return Ok(());
            }
            drop(state);
            self.watchdog.iter().for_each(|watchdog| watchdog.thread().unpark());
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Finalizes and destroys the communicator; returns `false` on failure or timeout.
    fn finalize(&self, comm: ncclComm_t, limit: Duration) -> bool {
        let (nccl, began) = (self.shared.nccl, Instant::now());
        // SAFETY: the communicator was taken out of the state.
        let mut progress = unsafe { nccl.finalize(comm) };
        while let Ok(Progress::Going) = progress {
            if began.elapsed() >= limit {
                return false;
            }
            thread::sleep(POLL_INTERVAL);
            // SAFETY: as above.
            progress = unsafe { nccl.progress(comm) };
        }
        // SAFETY: as above; nothing else uses it any more.
        progress.is_ok() && unsafe { nccl.destroy(comm) }.is_ok()
    }
}

impl DeviceCollectives for NcclLink {
    fn start_all_reduce(&self, buffer: DeviceBuffer, op: ReduceOp, what: &str) -> Result<(), CommError> {
        self.check()?;
        let began = Instant::now();
        if let Err(error) = self.follow_computation() {
            let failure = LinkFailure { operation: name_of(what), elapsed: began.elapsed(), reason: error.to_string() };
            return Err(self.shared.fail(self.shared.lock(), failure));
        }
        self.queue(buffer, op, what)
    }

    fn finish(&self, what: &str) -> Result<(), CommError> {
        self.check()?;
        if !self.unfinished.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        if !self.shared.context.has_events() {
            return self.wait_on_host();
        }
        let began = Instant::now();
        self.order_computation_after().map_err(|error| {
            let failure = LinkFailure { operation: name_of(what), elapsed: began.elapsed(), reason: error.to_string() };
            self.shared.fail(self.shared.lock(), failure)
        })
    }

    fn check(&self) -> Result<(), CommError> {
        self.shared.lock_healthy().map(|_| ())
    }
}

impl Drop for NcclLink {
    fn drop(&mut self) {
        self.shared.stop();
        let mut state = self.shared.lock();
        let (comm, limit) = (state.comm.take(), state.limit());
        drop(state);
        // Without a communicator there is nothing to finalize. The watchdog may still be in the abort, which can take
        // forever.
        let Some(comm) = comm else { return };
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.thread().unpark();
            // A panic of the watchdog has already ended the job.
            let _ = watchdog.join();
        }
        if thread::panicking() || !self.finalize(comm, limit) {
            // SAFETY: it was taken out of the state.
            let _ = unsafe { self.shared.nccl.abort(comm) };
        }
    }
}

/// Creates the unique ID of the communicator on rank 0 and broadcasts it.
fn share_id(host: &dyn Communicator, nccl: &Nccl) -> Result<ncclUniqueId, CommError> {
    let began = Instant::now();
    let mut bytes = [0u8; 128];
    if host.rank() == 0 {
        let id = nccl.unique_id().map_err(|error| refusal(host.rank(), began, &error))?;
        bytes = id.internal.map(|byte| byte as u8);
    }
    host.broadcast_bytes(&mut bytes, 0, "the NCCL unique ID")?;
    Ok(ncclUniqueId { internal: bytes.map(|byte| byte as _) })
}

/// Joins the communicator, without blocking inside NCCL.
fn join_communicator(
    host: &dyn Communicator,
    nccl: &Nccl,
    id: ncclUniqueId,
    limit: Duration,
) -> Result<ncclComm_t, CommError> {
    let (rank, began) = (host.rank(), Instant::now());
    let (comm, mut progress) = nccl.begin_join(rank, host.world_size(), id);
    while let Ok(Progress::Going) = progress {
        if began.elapsed() >= limit {
            break;
        }
        thread::sleep(POLL_INTERVAL);
        // SAFETY: the communicator was returned with this progress and has not been aborted.
        progress = unsafe { nccl.progress(comm) };
    }
    let error = match progress {
        Ok(Progress::Done) => return Ok(comm),
        Ok(Progress::Going) => {
            let reason = "timeout: another rank did not join, or the network blocks NCCL \
                          (set NCCL_SOCKET_IFNAME to select the interface, NCCL_DEBUG=INFO for details)";
            failure(rank, JOINING, began, Fault::Lost, reason.into())
        }
        Err(error) => refusal(rank, began, &error),
    };
    if !comm.is_null() {
        // SAFETY: as above; no other reference exists.
        let _ = unsafe { nccl.abort(comm) };
    }
    Err(error)
}

fn refusal(rank: usize, began: Instant, error: &NcclError) -> CommError {
    let fault = if error.is_permanent() { Fault::Unavailable } else { Fault::Lost };
    failure(rank, JOINING, began, fault, error.to_string())
}

fn failure(rank: usize, operation: &str, began: Instant, fault: Fault, reason: String) -> CommError {
    CommError { rank, operation: operation.into(), elapsed_s: began.elapsed().as_secs_f64(), fault, reason }
}

fn data_type(dtype: BufferDtype) -> ncclDataType_t {
    match dtype {
        BufferDtype::F32 => ncclDataType_t::ncclFloat32,
        BufferDtype::F16 => ncclDataType_t::ncclFloat16,
        BufferDtype::Bf16 => ncclDataType_t::ncclBfloat16,
    }
}

fn operation(op: ReduceOp) -> ncclRedOp_t {
    match op {
        ReduceOp::Sum => ncclRedOp_t::ncclSum,
        ReduceOp::Mean => ncclRedOp_t::ncclAvg,
        ReduceOp::Max => ncclRedOp_t::ncclMax,
    }
}
