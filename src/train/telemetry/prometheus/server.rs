//! HTTP server for a few clients, on its own thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use hyper_util::server::graceful::GracefulShutdown;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::{net, runtime};

use crate::http::{Limits, accept_all};

/// Maximum duration of a connection.
const CONNECTION_TIME: Duration = Duration::from_secs(600);
const CONNECTIONS: usize = 16;
/// Content type of the OpenMetrics text format.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves requests until it is dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the metrics of `registry` at `address`, under `GET /metrics`.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound, or the thread cannot be started.
    pub fn start(address: SocketAddr, registry: Registry) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let listener = {
            let _within = runtime.enter();
            net::TcpListener::from_std(listener)?
        };
        let serve = async move {
            let limits = Limits { connections: CONNECTIONS, connection_time: CONNECTION_TIME };
            // Connections that are still open at the end are closed.
            let open = GracefulShutdown::new();
            tokio::select! {
                () = accept_all(listener, router(registry), limits, &open) => {}
                _ = stopped => {}
            }
        };
        let thread = thread::Builder::new().name("metrics".into()).spawn(move || runtime.block_on(serve))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dropping the sender stops the thread.
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
