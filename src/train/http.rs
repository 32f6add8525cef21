//! HTTP server for untrusted clients, with limits on connections, idle time and connection time.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Timeout for the header of a request, also for the next request on a connection.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(50);

/// Limits for clients.
pub struct Limits {
    /// Maximum number of concurrent connections; further clients wait.
    pub connections: usize,
    /// Maximum duration of a connection.
    pub connection_time: Duration,
}

/// Accepts connections forever; must run in a tokio runtime. Open connections are closed gracefully when `open` shuts
/// down.
pub async fn accept_all(listener: TcpListener, router: Router, limits: Limits, open: &GracefulShutdown) {
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // A lack of file descriptors or memory may be temporary.
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(limits.connection_time, connection).await {
                tracing::debug!("a connection failed: {error}");
            }
            drop(place);
        });
    }
}
