//! `troop::serve`: takes the arguments of `axum::serve`, and moves or closes connections one by one
//! when the worker drains.
//!
//! Only axum can make the [`IncomingStream`] with which a make-service is called. So axum accepts,
//! and calls the make-service; the resulting service is kept in the connection, which returns to
//! this module when axum drops it, before anything has been read from it.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use ::axum::body::Body;
use ::axum::extract::Request;
use ::axum::extract::connect_info::ConnectInfo;
use ::axum::response::Response;
use ::axum::serve::{IncomingStream, Listener, ListenerExt, TapIo};
use ::hyper::body::Incoming;
use ::hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tower_service::Service;

use super::{Open, Served, WorkerIo, WorkerListener, connection};
use crate::worker::Worker;

/// Serves a `Router`, a `MethodRouter`, a handler or any make-service, as `axum::serve` does, until
/// the worker drains and every connection has moved or is closed. For workers that are reloaded
/// while clients keep their connections open. Returns the reason for the end.
///
/// `axum::serve(…).with_graceful_shutdown(worker.draining())` closes all idle connections at one
/// moment, and a client that sends a request at that moment loses it. Here a connection that is
/// between two requests [moves](Worker::return_connection) to another worker, and its client
/// notices nothing; one whose request is being served is answered first.
///
/// A connection that cannot move (HTTP/2, or no other worker takes connections of this listener) is
/// closed at [its own moment](Worker::closing). Until then its requests are answered as before, in
/// the last second with `Connection: close`; then the request in progress is answered, and the
/// connection is closed. Upgraded connections (WebSocket) are waited for too, until the grace
/// period ends; their handlers can watch [`Worker::closing`].
///
/// Handlers find the client's address as `ConnectInfo<SocketAddr>`, with and without
/// `into_make_service_with_connect_info::<SocketAddr>()`. A custom make-service is called with
/// `IncomingStream<'_, AcceptedBy<troop::TcpListener>>`, or any, and finds the connection in its
/// I/O ([`Handover::get_ref`]).
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
pub async fn serve<L, M, S>(listener: L, make_service: M) -> Served
where
    L: WorkerListener,
    M: for<'a> Service<IncomingStream<'a, AcceptedBy<L>>, Error = Infallible, Response = S>
        + Send
        + 'static,
    for<'a> <M as Service<IncomingStream<'a, AcceptedBy<L>>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let worker = listener.worker().clone();
    let draining = worker.draining();
    let open = Open::new();
    let accepted = Accepting { listener, worker: worker.clone(), open: open.one.clone() };
    let accepted: AcceptedBy<L> = accepted.tap_io(|_| {});
    let keep = Keep { make_service, runtime: Handle::current(), made: PhantomData };
    // By axum's contract it never fails.
    let _ = ::axum::serve(accepted, keep).with_graceful_shutdown(draining).await;
    open.all_closed().await;
    Served::by(&worker)
}

/// The listener that axum accepts on, with an [`IncomingStream`] for each connection. The address
/// is the client's, the I/O a [`Handover`].
pub type AcceptedBy<L> = TapIo<Accepting<L>, fn(&mut Handover<<L as WorkerListener>::Io>)>;

/// A worker's listener, for axum alone; see [`AcceptedBy`].
#[derive(Debug)]
pub struct Accepting<L> {
    listener: L,
    worker: Worker,
    open: watch::Receiver<()>,
}

impl<L: WorkerListener> Listener for Accepting<L> {
    type Io = Handover<L::Io>;
    type Addr = L::Address;

    async fn accept(&mut self) -> (Handover<L::Io>, L::Address) {
        let (io, address) = self.listener.next().await;
        let (worker, open) = (self.worker.clone(), self.open.clone());
        (Handover { connection: Some((io, worker, open)), start: Start::default() }, address)
    }

    fn local_addr(&self) -> io::Result<L::Address> {
        self.listener.local()
    }
}

/// A connection that waits until it can be served.
type Connection<I> = (I, Worker, watch::Receiver<()>);

/// Begins to serve a connection, once the make-service has made a service for it.
type Start<I> = Arc<Mutex<Option<Box<dyn FnOnce(Connection<I>) + Send>>>>;

/// A connection that axum has accepted and does not read from, because to axum it looks closed by
/// its client. When axum drops it, this module begins to serve it.
pub struct Handover<I> {
    connection: Option<Connection<I>>,
    start: Start<I>,
}

impl<I> Handover<I> {
    /// The connection.
    pub fn get_ref(&self) -> Option<&I> {
        self.connection.as_ref().map(|(io, ..)| io)
    }
}

impl<I> fmt::Debug for Handover<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").finish_non_exhaustive()
    }
}

impl<I> Drop for Handover<I> {
    fn drop(&mut self) {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(start), Some(connection)) = (start, self.connection.take()) {
            start(connection);
        }
    }
}

impl<I: Unpin> AsyncRead for Handover<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl<I: Unpin> AsyncWrite for Handover<I> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The make-service, whose services are kept for this module.
struct Keep<M, S> {
    make_service: M,
    runtime: Handle,
    made: PhantomData<fn() -> S>,
}

impl<'a, L, M, S> Service<IncomingStream<'a, AcceptedBy<L>>> for Keep<M, S>
where
    L: WorkerListener,
    M: Service<IncomingStream<'a, AcceptedBy<L>>, Error = Infallible, Response = S> + 'static,
    M::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Closed;
    type Error = Infallible;
    type Future = Keeping<M::Future, L::Io, L::Address>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.make_service.poll_ready(cx)
    }

    fn call(&mut self, stream: IncomingStream<'a, AcceptedBy<L>>) -> Self::Future {
        let (address, start) = (stream.remote_addr().clone(), stream.io().start.clone());
        let (runtime, made) = (self.runtime.clone(), Box::pin(self.make_service.call(stream)));
        Keeping { made, runtime, connection: Some((address, start)) }
    }
}

/// Waits for the service that the make-service makes, and keeps it.
struct Keeping<F, I, A> {
    made: Pin<Box<F>>,
    runtime: Handle,
    connection: Option<(A, Start<I>)>,
}

impl<F, I, A, S> Future for Keeping<F, I, A>
where
    F: Future<Output = Result<S, Infallible>>,
    I: WorkerIo,
    A: Clone + Send + Sync + Unpin + 'static,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Output = Result<Closed, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let service = ready!(self.made.as_mut().poll(cx))?;
        if let Some((address, start)) = self.connection.take() {
            let runtime = self.runtime.clone();
            let begin = move |connection| {
                runtime.spawn(connect(connection, address, service));
            };
            *start.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(begin));
        }
        Poll::Ready(Ok(Closed))
    }
}

async fn connect<I, A, S>((io, worker, open): Connection<I>, address: A, service: S)
where
    I: WorkerIo,
    A: Clone + Send + Sync + 'static,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let span = worker.inner().span.clone();
    let service = service_fn(move |request: ::hyper::Request<Incoming>| {
        let (mut service, mut request) = (service.clone(), request.map(Body::new));
        request.extensions_mut().insert(ConnectInfo(address.clone()));
        async move {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        }
    });
    span.wrap(connection::serve(io, service, &worker, open, None, None)).await;
}

/// The service that axum gets for a connection which it believes to be closed.
#[derive(Clone)]
struct Closed;

impl Service<Request> for Closed {
    type Response = Response;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        std::future::ready(Ok(Response::default()))
    }
}
