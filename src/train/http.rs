//! HTTP for clients that are not trusted to behave: bounded in number, in silence, and where wanted in time.

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

/// Within this time the head of a request must come, the next on a connection as well.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// After a connection that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// What clients are granted.
pub struct Limits {
    /// Clients that are connected at a time; more of them wait to be.
    pub connections: usize,
    /// Nobody keeps a connection for longer.
    pub connection_time: Duration,
}

/// Takes connections for ever, within a runtime of tokio. Those that are open end gracefully when `open` is told to.
pub async fn accept_all(listener: TcpListener, router: Router, limits: Limits, open: &GracefulShutdown) {
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        let place = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Of files or memory there may be more in a moment.
            Err(error) => {
                tracing::warn!("a connection failed: {error}");
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
