//! Connections that speak HTTP/2, which cannot move: they are closed one after another.

use std::error::Error;
use std::pin::pin;

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;

use super::WorkerIo;
use super::connection::HEAD_TIMEOUT;
use super::stream::Stream;
use crate::worker::{Turn, Worker};

/// Waits for the first bytes, and returns whether they are those of HTTP/2. Returns false if none
/// have arrived when connections begin to move; `None` if the client is gone.
pub(super) async fn is_spoken<I: WorkerIo>(
    stream: &mut Stream<I>,
    worker: &Worker,
    turn: Turn,
) -> Option<bool> {
    let inner = worker.inner();
    let closing = async {
        inner.wait_for_turn(turn, false).await;
        inner.wait_for_no_moves().await;
    };
    tokio::select! {
        biased;
        spoken = stream.is_http2() => return spoken,
        () = inner.wait_for_moves() => {}
        () = closing => return None,
    }
    if stream.is_at_rest() {
        return Some(false);
    }
    tokio::time::timeout(HEAD_TIMEOUT, stream.is_http2()).await.ok().flatten()
}

/// Serves HTTP/2 until the client closes the connection or its moment has come.
pub(super) async fn serve<I, S, B>(stream: Stream<I>, service: S, worker: &Worker, turn: Turn)
where
    I: WorkerIo,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    let mut connection =
        pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = worker.inner().wait_for_turn(turn, false) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
