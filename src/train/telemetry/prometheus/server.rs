//! HTTP server for a few clients, on its own thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::oneshot;
use tokio::{net, runtime};

use super::exporter::CONTENT_TYPE;
use crate::http::{Limits, accept_all};

/// Maximum duration of a connection.
const CONNECTION_TIME: Duration = Duration::from_secs(600);
const CONNECTIONS: usize = 16;

/// Serves requests until it is dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the text that `render` returns at `address`, under `GET /metrics`.
    ///
    /// # Errors
    /// Returns an error if the address cannot be bound, or the thread cannot be started.
    pub fn start(address: SocketAddr, render: impl Fn() -> String + Send + Sync + 'static) -> io::Result<Self> {
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
                () = accept_all(listener, router(render), limits, &open) => {}
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

fn router(render: impl Fn() -> String + Send + Sync + 'static) -> Router {
    let render = Arc::new(render);
    let answer = move || {
        let render = render.clone();
        async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], render()) }
    };
    Router::new().route("/metrics", get(answer))
}
