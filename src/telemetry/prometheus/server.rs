//! HTTP for a handful of clients, on a thread of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

/// Clients that are connected at a time; more of them wait to be.
const CONNECTIONS: usize = 16;
/// Within this time the head of a request must come, the next on a connection as well.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Nobody keeps a connection for longer.
const CONNECTION_TIME: Duration = Duration::from_secs(600);
/// After a connection that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Of OpenMetrics as text.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers until it is dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers `GET /metrics` at `address` with what is registered.
    ///
    /// # Errors
    /// The address cannot be listened on, or there is no thread left.
    pub fn start(address: SocketAddr, registry: Registry) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            tokio::select! {
                result = accept_all(listener, router(registry)) => {
                    if let Err(error) = result {
                        tracing::warn!("{address}: {error}; no more metrics, the run goes on");
                    }
                }
                _ = stopped => {}
            }
        };
        let thread = thread::Builder::new().name("metrics".into()).spawn(move || runtime.block_on(serve))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The thread waits for a word, or for the end of whoever could send it.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn router(registry: Registry) -> Router {
    let registry = Arc::new(registry);
    let answer = move || {
        let registry = registry.clone();
        async move {
            let mut body = String::new();
            text::encode(&mut body, &registry).expect("a string takes any text");
            ([(CONTENT_TYPE, FORMAT)], body)
        }
    };
    Router::new().route("/metrics", get(answer))
}

/// Takes connections for ever.
async fn accept_all(listener: TcpListener, router: Router) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Of files or memory there may be more in a moment.
            Err(error) => {
                tracing::debug!("a connection failed: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(CONNECTION_TIME, connection).await {
                tracing::debug!("a connection failed: {error}");
            }
            drop(place);
        });
    }
}
