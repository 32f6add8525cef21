//! Convolutions on one GPU. Execution plans are built once and run in order with the device's other work.

use std::collections::HashMap;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::algo_cache::{AlgoCache, AlgoCacheEntry};
use super::graph::ConvProblem;
use super::graph::Graph;
use super::library::{CallError, Cudnn, Pointer};
use super::plan::{Candidate, Plan, candidates};
use nnunet_comm::cuda::{Context, Driver, DriverError, Event, Memory, Stream};

/// Number of timed runs of a candidate, after one warm-up run.
const RUNS: usize = 3;

/// Settings of the engine selection.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the benchmark cache; `None` for the user's cache folder.
    pub cache_folder: Option<PathBuf>,
    /// Use only deterministic engines, whose sums do not depend on thread order.
    pub deterministic: bool,
    /// Maximum workspace of an engine in bytes.
    pub max_workspace: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_folder: None, deterministic: false, max_workspace: 1 << 30 }
    }
}

/// Error queueing a convolution.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConvError {
    /// Another kernel may support the problem.
    #[error("cuDNN has no engine for {0}")]
    NoEngine(String),
    #[error("the GPU's memory is full: cuDNN needs {0} bytes of workspace")]
    OutOfMemory(usize),
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{0}")]
    Driver(#[from] DriverError),
}

type Result<T, E = ConvError> = std::result::Result<T, E>;

/// cuDNN on one GPU.
pub struct Convolutions {
    library: &'static Cudnn,
    options: Options,
    state: Mutex<EngineState>,
    // Dropped after the state.
    stream: Stream,
    /// Makes the stream wait for the device's other work.
    before: Event,
    /// Makes the device's other work wait for the stream.
    after: Event,
    context: Context,
}

/// State behind the lock.
struct EngineState {
    /// Plans with their graphs, which must be dropped after the plans.
    plans: HashMap<ConvProblem, Option<(Plan, Graph)>>,
    handle: Handle,
    workspace: Option<Memory>,
    cache: AlgoCache,
}

impl Convolutions {
    /// Initializes cuDNN on a GPU, given its index among the visible devices.
    ///
    /// # Errors
    /// Returns an error in one line that says what is missing.
    pub fn new(gpu: usize, options: Options) -> Result<Self, String> {
        let library = Cudnn::open()?;
        let driver = Driver::open()?;
        let open = || -> Result<(Context, Stream, Event, Event, String), DriverError> {
            let context = Context::primary(driver, gpu)?;
            let (stream, before, after) = (context.stream()?, context.event()?, context.event()?);
            Ok((context, stream, before, after, driver.name(gpu)?))
        };
        let (context, stream, before, after, name) = open().map_err(|error| error.to_string())?;
        let handle = Handle::new(library, &stream).map_err(|error| format!("cuDNN: {error}"))?;
        let cache = AlgoCache::open(options.cache_folder.as_deref(), &name, &library.version());
        let state = Mutex::new(EngineState { plans: HashMap::new(), handle, workspace: None, cache });
        Ok(Self { library, options, state, stream, before, after, context })
    }

    /// Queues a convolution after all work submitted to the device so far and before all later work. The first call for
    /// a problem benchmarks the available engines.
    ///
    /// # Errors
    /// Returns [`ConvError::NoEngine`] if another kernel must do the work, and an error if cuDNN or the driver fails.
    ///
    /// # Safety
    /// The addresses of input, weights and output (or their gradients) must be those of the problem's tensors in this
    /// GPU's memory, aligned to 16 bytes, and must be freed only in stream order of the device.
    pub unsafe fn run(&self, problem: &ConvProblem, addresses: [u64; 3]) -> Result<()> {
        let mut state = self.state();
        self.context.make_current()?;
        if !state.plans.contains_key(problem) {
            // SAFETY: guaranteed by the caller.
            let plan = unsafe { self.select_plan(&mut state, problem, addresses) }?;
            state.plans.insert(*problem, plan);
        }
        self.context.record(&self.before)?;
        self.stream.wait_for(&self.before)?;
        let EngineState { plans, handle, workspace, .. } = &mut *state;
        let Some(Some((plan, _))) = plans.get(problem) else { return Err(ConvError::NoEngine(problem.to_string())) };
        let workspace = self.reserve(workspace, plan.workspace)?;
        // SAFETY: guaranteed by the caller.
        unsafe { plan.run(self.library, handle.0, addresses, workspace) }?;
        if self.context.has_events() {
            self.stream.record(&self.after)?;
            self.context.wait_for(&self.after)?;
        } else {
            self.stream.synchronize()?;
        }
        Ok(())
    }

    /// Returns the cached benchmark result of a problem.
    pub fn cached_algo(&self, problem: &ConvProblem) -> Option<AlgoCacheEntry> {
        self.state().cache.get(problem)
    }

    /// Records the time of Burn's kernel for a problem that has been run with cuDNN.
    pub fn record_burn_timing(&self, problem: &ConvProblem, seconds: f64) {
        let mut state = self.state();
        if let Some(entry) = state.cache.get(problem) {
            state.cache.put(problem, AlgoCacheEntry { burn_seconds: Some(seconds), ..entry });
        }
    }

    /// Returns the cached plan, or benchmarks all candidates and returns the fastest.
    unsafe fn select_plan(
        &self,
        state: &mut EngineState,
        problem: &ConvProblem,
        addresses: [u64; 3],
    ) -> Result<Option<(Plan, Graph)>> {
        let graph = match Graph::new(self.library, state.handle.0, problem) {
            Ok(graph) => graph,
            // Support for a gradient whose type differs from the other tensors' is not documented for every version.
            Err(error) if error.is_unsupported() || problem.has_mixed_dtypes() && error.is_bad_parameter() => {
                self.note(state, problem, None);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let mut candidates = candidates(self.library, &graph, problem, self.options.deterministic)?;
        let is_it = |engine: i64| move |candidate: &Candidate| candidate.engine == engine;
        match state.cache.get(problem).map(|entry| entry.engine) {
            Some(None) => return Ok(None),
            Some(Some((engine, place))) if candidates.get(place).is_some_and(is_it(engine)) => {
                let candidate = candidates.swap_remove(place);
                let plan = candidate.plan(self.library, state.handle.0, self.options.max_workspace)?;
                return Ok(plan.map(|plan| (plan, graph)));
            }
            _ => {}
        }
        let mut fastest: Option<(Plan, usize, f64)> = None;
        for (place, candidate) in candidates.into_iter().enumerate() {
            let Some(plan) = candidate.plan(self.library, state.handle.0, self.options.max_workspace)? else {
                continue;
            };
            // SAFETY: guaranteed by the caller.
            let Some(seconds) = (unsafe { self.measure(state, &plan, addresses) })? else { continue };
            if fastest.as_ref().is_none_or(|(_, _, least)| seconds < *least) {
                fastest = Some((plan, place, seconds));
            }
        }
        self.note(state, problem, fastest.as_ref());
        Ok(fastest.map(|(plan, ..)| (plan, graph)))
    }

    /// Stores the result of a benchmark.
    fn note(&self, state: &mut EngineState, problem: &ConvProblem, found: Option<&(Plan, usize, f64)>) {
        let entry = match found {
            Some((plan, place, seconds)) => AlgoCacheEntry {
                engine: Some((plan.engine, *place)),
                seconds: *seconds,
                workspace: plan.workspace,
                burn_seconds: None,
            },
            None => AlgoCacheEntry { engine: None, seconds: 0.0, workspace: 0, burn_seconds: None },
        };
        tracing::debug!("{problem}: {entry:?}");
        state.cache.put(problem, entry);
    }

    /// Returns the median time of a run in seconds; `None` if the engine rejects the problem at run time.
    unsafe fn measure(&self, state: &mut EngineState, plan: &Plan, addresses: [u64; 3]) -> Result<Option<f64>> {
        let workspace = self.reserve(&mut state.workspace, plan.workspace)?;
        self.context.record(&self.before)?;
        self.stream.wait_for(&self.before)?;
        let mut seconds = Vec::with_capacity(RUNS);
        for _ in 0..=RUNS {
            let (begin, end) = (self.context.timed_event()?, self.context.timed_event()?);
            self.stream.record(&begin)?;
            // SAFETY: guaranteed by the caller; the workspace has the size that the plan requires.
            match unsafe { plan.run(self.library, state.handle.0, addresses, workspace) } {
                Err(error) if error.is_unsupported() => return Ok(None),
                Err(error) if error.is_out_of_memory() => return Ok(None),
                result => result?,
            }
            self.stream.record(&end)?;
            seconds.push(end.seconds_since(&begin)?);
        }
        let timed = &mut seconds[1..];
        timed.sort_by(f64::total_cmp);
        Ok(Some(timed[RUNS / 2]))
    }

    /// Returns the address of a workspace of at least `bytes` bytes.
    fn reserve(&self, workspace: &mut Option<Memory>, bytes: usize) -> Result<u64> {
        if let Some(memory) = workspace
            && memory.bytes >= bytes
        {
            return Ok(memory.pointer);
        }
        if bytes == 0 {
            return Ok(0);
        }
        // The stream may still be using the old workspace.
        self.stream.synchronize()?;
        *workspace = None;
        let memory = self.context.allocate(bytes).map_err(|error| match error.is_out_of_memory() {
            true => ConvError::OutOfMemory(bytes),
            false => error.into(),
        })?;
        Ok(workspace.insert(memory).pointer)
    }

    fn state(&self) -> MutexGuard<'_, EngineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `cudnnHandle_t`.
struct Handle(Pointer, &'static Cudnn);

// SAFETY: a handle may be used from any thread, but not concurrently.
unsafe impl Send for Handle {}

impl Handle {
    fn new(library: &'static Cudnn, stream: &Stream) -> Result<Self, CallError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the out-pointer is valid.
        library.check("cudnnCreate", unsafe { (library.functions.cudnnCreate)(&mut handle) })?;
        let handle = Self(handle, library);
        // SAFETY: both handles are alive.
        let code = unsafe { (library.functions.cudnnSetStream)(handle.0, stream.handle) };
        library.check("cudnnSetStream", code)?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { (self.1.functions.cudnnDestroy)(self.0) };
    }
}
