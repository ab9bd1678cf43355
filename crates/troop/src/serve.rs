//! Serving an axum app to the end, whose connections are closed little by little.

use std::convert::Infallible;
use std::pin::pin;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
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

/// Serves an axum app until the worker is to finish and every connection is closed: `axum::serve` for a worker that is reloaded while
/// clients keep their connections open.
///
/// The difference is in the end. `axum::serve(…).with_graceful_shutdown(worker.draining())` closes all idle connections at one moment, and
/// all their clients come back at once. Here each connection has [a moment of its own](Worker::closing). Until then its requests are
/// answered as before; then the request that is being served is answered, and the connection is closed. Handlers find the client's address
/// as `ConnectInfo<SocketAddr>`.
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

async fn connect<L: WorkerListener>(io: L::Io, address: L::Addr, app: Router, worker: Worker, _open: watch::Receiver<()>) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address.clone()));
        answer(app.clone(), request)
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
    // Errors are those of the client, which is gone.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = worker.closing() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn answer(mut app: Router, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    app.call(request.map(Body::new)).await
}
