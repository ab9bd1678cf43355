//! A service of hyper's, with nothing else around it.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};

use super::waiting::Waiting;
use super::{Open, Served, WorkerListener, connection};

/// Serves a hyper service, as [`serve`](crate::serve()) does an app of axum's: until the worker is to
/// finish and every connection has moved to another worker or is closed. Each connection gets a
/// clone of the service, and each request the client's address as an extension (`SocketAddr`).
///
/// ```no_run
/// use hyper::service::service_fn;
/// use hyper::{Request, Response};
///
/// troop::worker()?.block_on(async |worker| {
///     let hello = service_fn(|_: Request<hyper::body::Incoming>| async {
///         Ok::<_, std::convert::Infallible>(Response::new("hello\n".to_owned()))
///     });
///     troop::serve::hyper(worker.listen("0.0.0.0:8000").await?, hello).await;
///     Ok::<_, troop::Error>(())
/// })
/// # ; Ok::<(), troop::Error>(())
/// ```
pub async fn hyper<L, S, B>(listener: L, service: S) -> Served
where
    L: WorkerListener,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    serve(listener, service, None).await
}

/// What the clients of a server may cost it: [`hyper_within`]. A [`Duration`] is the limits with that
/// timeout and any number of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    timeout: Duration,
    connections: usize,
    replaces_silent: bool,
}

impl Limits {
    /// Disconnects clients that keep the server waiting for this long: those that send no complete head
    /// of a request while none is answered, and those that take nothing of an answer.
    #[must_use]
    pub fn timeout(timeout: Duration) -> Limits {
        Limits { timeout, connections: usize::MAX, replaces_silent: false }
    }

    /// Closes connections at once that come while this many are open.
    #[must_use]
    pub fn connections(self, connections: usize) -> Limits {
        Limits { connections, ..self }
    }

    /// Makes room for connections beyond these: the one is closed that has waited for its client for
    /// longest, for a request or for room for an answer. So silent clients keep no others out. While all
    /// are being answered, a further one is closed at once.
    #[must_use]
    pub fn replacing_silent(self) -> Limits {
        Limits { replaces_silent: true, ..self }
    }
}

impl From<Duration> for Limits {
    fn from(timeout: Duration) -> Limits {
        Limits::timeout(timeout)
    }
}

/// Serves a hyper service as [`hyper()`](hyper()) does, within limits. Without any, which is for servers
/// behind a proxy that has some, a few silent clients can use up the worker's descriptors. They are limits
/// of HTTP/1: HTTP/2 is not spoken here.
pub async fn hyper_within<L, S, B>(listener: L, service: S, limits: impl Into<Limits>) -> Served
where
    L: WorkerListener,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    serve(listener, service, Some(limits.into())).await
}

async fn serve<L, S, B>(mut listener: L, service: S, limits: Option<Limits>) -> Served
where
    L: WorkerListener,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let worker = listener.worker().clone();
    let mut draining = pin!(worker.draining());
    let open = Open::new();
    let timeout = limits.map(|limits| limits.timeout);
    let waiting = limits.filter(|limits| limits.replaces_silent).map(|_| Arc::<Waiting>::default());
    loop {
        let (io, address) = tokio::select! {
            // First, so that a listener which still has something cannot keep this from ending.
            biased;
            () = &mut draining => break,
            accepted = listener.next() => accepted,
        };
        if limits.is_some_and(|limits| open.count() >= limits.connections)
            && !waiting.as_ref().is_some_and(|waiting| waiting.replace_first())
        {
            continue;
        }
        let place = waiting.as_ref().map(Waiting::add);
        let (service, worker, open) = (service.clone(), worker.clone(), open.one.clone());
        let span = worker.inner().span.clone();
        tokio::spawn(span.wrap(async move {
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(address.clone());
                service.call(request)
            });
            let serving = connection::serve(io, service, &worker, open, timeout, place.clone());
            match place {
                None => serving.await,
                Some(place) => tokio::select! {
                    biased;
                    () = place.replaced() => {}
                    () = serving => {}
                },
            }
        }));
    }
    drop(listener);
    open.all_closed().await;
    Served::by(&worker)
}
