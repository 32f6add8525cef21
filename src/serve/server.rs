//! Server startup and shutdown.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use hyper_util::server::graceful::GracefulShutdown;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::time::{interval, sleep};

use super::options::ServeError;
use super::options::ServeOptions;
use super::routes::router;
use super::state::ServerState;
use super::worker::{predict_all, preprocess_all};
use nnunet_comm::distributed::Single;
use nnunet_infer::CascadePredictor;
use nnunet_nn::backend::{ComputeBackend, OnDevice, on_device};
use nnunet_nn::ops::NnOps;
use nnunet_train::http::{Limits, accept_all};

const CONNECTIONS: usize = 1024;
/// Maximum time of a connection: an image may wait for many others and be large; a client that takes longer is gone.
const CONNECTION_TIME: Duration = Duration::from_secs(24 * 3600);
/// Time that a stopping server waits for clients to read their answers.
const READING_TIME: Duration = Duration::from_secs(10);
/// Interval for checking the stop flag.
const LOOK: Duration = Duration::from_millis(50);
/// Network threads; they only move bytes.
const THREADS: usize = 2;

/// Answers requests until SIGTERM or SIGINT. Calls `announce` with the address when connections are accepted.
///
/// The first signal starts a graceful shutdown: images being preprocessed or predicted are finished and answered, all
/// others are refused with 503. A second signal ends the process immediately.
///
/// # Errors
/// Returns an error if the networks cannot be read, or the address cannot be listened on.
pub fn serve(options: &ServeOptions, announce: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let predict = &options.predict;
    on_device(predict.device, predict.precision, &Single, Serve { options, announce })?
}

struct Serve<'a, F> {
    options: &'a ServeOptions,
    announce: F,
}

impl<F: FnOnce(SocketAddr)> OnDevice for Serve<'_, F> {
    type Output = Result<(), ServeError>;

    fn run<B: ComputeBackend>(self, device: B::Device) -> Self::Output {
        self.serve::<B::InnerBackend>(device)
    }
}

impl<F: FnOnce(SocketAddr)> Serve<'_, F> {
    fn serve<B: NnOps>(self, device: B::Device) -> Result<(), ServeError> {
        let Self { options, announce } = self;
        let predictor = CascadePredictor::<B>::open(&options.first_stage, &options.predict, device)?;
        let (jobs, queue) = bounded(options.limits.queue);
        let state = Arc::new(ServerState::new(predictor.last().model(), predictor.preprocessors(), options, jobs));
        let stop = listen_to_signals().map_err(ServeError::System)?;
        let mut threads = runtime::Builder::new_multi_thread();
        let runtime = threads.worker_threads(THREADS).enable_all().build().map_err(ServeError::System)?;
        let listener = runtime.block_on(TcpListener::bind(options.listen));
        let failed = |source| ServeError::Listen { address: options.listen, source };
        let listener = listener.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        thread::scope(|scope| {
            let (preprocessed, ready) = bounded(0);
            let (predictor, state, runtime, stop) = (&predictor, &state, &runtime, &stop);
            scope.spawn(move || preprocess_all(&queue, predictor, state, &preprocessed));
            scope.spawn(move || run(runtime, listener, state, stop));
            announce(address);
            // On this thread, which has loaded the weights to the device.
            predict_all(&ready, predictor, state);
        });
        // Remaining connections have exceeded their time.
        runtime.shutdown_background();
        Ok(())
    }
}

/// Registers a flag that the first signal sets; the second signal has its default action.
fn listen_to_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order, so that the first signal does not see the flag set.
        flag::register_conditional_default(signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn run(runtime: &Runtime, listener: TcpListener, state: &Arc<ServerState>, stop: &AtomicBool) {
    runtime.block_on(async {
        let limits = Limits { connections: CONNECTIONS, connection_time: CONNECTION_TIME };
        let open = GracefulShutdown::new();
        tokio::select! {
            () = accept_all(listener, router(state.clone()), limits, &open) => {}
            () = is_set(stop) => {}
        }
        tracing::info!("stopping: {} images in the queue", state.reserved_slots());
        state.stop();
        tokio::select! {
            () = open.shutdown() => {}
            () = async {
                state.wait_until_idle().await;
                sleep(READING_TIME).await;
            } => {}
        }
    });
}

async fn is_set(flag: &AtomicBool) {
    let mut look = interval(LOOK);
    while !flag.load(Ordering::Relaxed) {
        look.tick().await;
    }
}
