//! Serving an axum app to the end, whose connections are closed little by little.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Request, Response, StatusCode, Version};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tower_service::Service;

use crate::net::{TcpListener, UnixListener};
use crate::worker::Worker;

/// A listener of a worker's, for [`serve`].
pub trait WorkerListener: Listener<Addr: Clone + Sync + 'static> + sealed::Sealed {
    /// Whose it is.
    fn worker(&self) -> &Worker;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::net::TcpListener {}
    impl Sealed for crate::net::UnixListener {}
}

impl WorkerListener for TcpListener {
    fn worker(&self) -> &Worker {
        TcpListener::worker(self)
    }
}

impl WorkerListener for UnixListener {
    fn worker(&self) -> &Worker {
        UnixListener::worker(self)
    }
}

/// Serves an axum app until the worker is to finish and every connection is closed: `axum::serve`
/// for a worker that is reloaded while clients keep their connections open.
///
/// The difference is in the end. `axum::serve(…).with_graceful_shutdown(worker.draining())` closes
/// all idle connections at one moment, and all their clients come back at once. Here each
/// connection has [a moment of its own](Worker::closing). Until then its requests are answered as
/// before, and for the last second with `Connection: close`; then the request that is being served
/// is answered, and the connection is closed. Connections that have been upgraded (WebSocket) are
/// waited for too, until the primary loses its patience; their handlers can watch
/// [`Worker::closing`] themselves. Handlers find the client's address as `ConnectInfo<SocketAddr>`.
///
/// ```no_run
/// use axum::{Router, routing::get};
///
/// troop::worker()?.block_on(async |worker| {
///     let listener = worker.listen("0.0.0.0:8000").await?;
///     troop::serve(listener, Router::new().route("/", get(async || "hello\n"))).await;
///     Ok::<_, troop::Error>(())
/// })
/// # ; Ok::<(), troop::Error>(())
/// ```
pub async fn serve<L: WorkerListener>(mut listener: L, app: Router) {
    let worker = listener.worker().clone();
    let draining = worker.draining();
    let mut draining = pin!(draining);
    // Closed when the last connection is.
    let (open, connection) = watch::channel(());
    loop {
        let (io, address) = tokio::select! {
            // First, so that a listener which still has something cannot keep this from ending.
            biased;
            () = &mut draining => break,
            accepted = listener.accept() => accepted,
        };
        tokio::spawn(connect::<L>(io, address, app.clone(), worker.clone(), connection.clone()));
    }
    drop((listener, connection));
    open.closed().await;
}

async fn connect<L: WorkerListener>(
    io: L::Io,
    address: L::Addr,
    app: Router,
    worker: Worker,
    open: watch::Receiver<()>,
) {
    let is_last = Arc::new(AtomicBool::new(false));
    let last = is_last.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address.clone()));
        answer(app.clone(), request, last.clone())
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(
        builder.serve_connection_with_upgrades(TokioIo::new(Held { io, _open: open }), service)
    );
    let (inner, turn) = (worker.inner(), worker.inner().next_turn());
    // The connection first: what has arrived is answered. Errors are those of the client, which is
    // gone.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = inner.wait_for_turn(turn, true) => is_last.store(true, Ordering::Relaxed),
    }
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = inner.wait_for_turn(turn, false) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(
    mut app: Router,
    request: Request<Incoming>,
    is_last: Arc<AtomicBool>,
) -> Result<Response<Body>, Infallible> {
    // Later versions have other ways to say it.
    let tells = request.version() <= Version::HTTP_11;
    let mut response = app.call(request.map(Body::new)).await?;
    if tells
        && is_last.load(Ordering::Relaxed)
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        // So that a client which goes on asking learns of the end before it asks again.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A connection that is waited for, also when it has become another protocol's.
struct Held<I> {
    io: I,
    _open: watch::Receiver<()>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Held<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Held<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
