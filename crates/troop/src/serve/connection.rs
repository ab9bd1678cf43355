//! One connection, from its first request to the moment at which it moves to another worker or is
//! closed.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1::{Builder, Parts, UpgradeableConnection};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;

use super::WorkerIo;
use super::activity::{Activity, Answer};
#[cfg(feature = "http2")]
use super::http2;
use super::stream::Stream;
use super::waiting::Place;
use crate::worker::{Turn, Worker};

/// Time that a client has to complete the head of a request that it has begun, when the worker
/// drains.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which a connection that the primary could not take is offered again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Serves a connection until its client closes it or, after the worker is to finish, until another
/// worker has it or its moment to close has come. `open` is held until then, also after an upgrade
/// to another protocol. `limit` is how long a client may keep it waiting, `place` where it is among the
/// connections that can be replaced.
pub(super) async fn serve<I, S, B>(
    io: I,
    service: S,
    worker: &Worker,
    open: watch::Receiver<()>,
    limit: Option<Duration>,
    place: Option<Arc<Place>>,
) where
    I: WorkerIo,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let activity = Arc::new(Activity::at(place));
    let mut stream = Stream::new(io, activity.clone(), open, limit);
    let turn = worker.inner().next_turn();
    let answering = activity.clone();
    // Boxed, so that it can be taken out of a connection.
    let mut service = Box::new(service_fn(move |request: Request<Incoming>| {
        // Later versions announce the last answer in other ways.
        let (busy, says_so) = (answering.begin(), request.version() <= Version::HTTP_11);
        let (answer, activity) = (service.call(request), answering.clone());
        async move {
            let mut response = answer.await?;
            if says_so
                && activity.is_last.load(Relaxed)
                && response.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                // A client that keeps sending requests learns of the end before its next one.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, S::Error>(response.map(|body| Answer::new(body, busy)))
        }
    }));
    // There are no limits for HTTP/2, so where there are some it is not spoken.
    #[cfg(feature = "http2")]
    if limit.is_none() {
        match http2::is_spoken(&mut stream, worker, turn).await {
            Some(true) => return http2::serve(stream, service, worker, turn).await,
            Some(false) => {}
            None => return,
        }
    }
    let _registered = Registered::new(&stream, &activity, worker);
    loop {
        let mut builder = Builder::new();
        if let Some(limit) = limit {
            builder.timer(TokioTimer::new()).header_read_timeout(limit);
        }
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let Some((rest, again)) = until_rest(connection, &activity, worker, turn).await else {
            return;
        };
        service = again;
        if !rest.is_at_rest() {
            // A part of the next request has come, which no other worker would see.
            stream = rest;
            continue;
        }
        activity.offered();
        stream = match rest.give_back(worker).await {
            Err(Some(kept)) => kept,
            Ok(()) | Err(None) => return,
        };
        if worker.is_draining() {
            activity.refuse();
        }
    }
}

/// A connection in the list of those that can move, until it is dropped.
struct Registered<'a> {
    worker: &'a Worker,
    number: Option<usize>,
}

impl Registered<'_> {
    fn new<'a, I: WorkerIo>(
        stream: &Stream<I>,
        activity: &Arc<Activity>,
        worker: &'a Worker,
    ) -> Registered<'a> {
        let listener = stream.listener_key();
        let number = listener.map(|key| worker.inner().movable.add(key, activity.clone()));
        Registered { worker, number }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.worker.inner().movable.remove(number);
        }
    }
}

/// Serves HTTP/1. Returns the connection at a moment between two requests at which another worker
/// could have it, and the service; `None` once it is closed.
async fn until_rest<I, S, B>(
    mut connection: UpgradeableConnection<TokioIo<Stream<I>>, S>,
    activity: &Activity,
    worker: &Worker,
    turn: Turn,
) -> Option<(Stream<I>, S)>
where
    I: WorkerIo,
    S: Service<Request<Incoming>, Response = Response<B>> + Unpin,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let inner = worker.inner();
    let rest = async {
        let leaves = async {
            inner.wait_for_moves().await;
            activity.wait_for_offer(RETRY_INTERVAL).await;
        };
        tokio::select! {
            () = leaves => {}
            () = activity.requested() => {}
        }
        activity.idle().await;
    };
    let half_head = async {
        inner.wait_for_moves().await;
        tokio::time::sleep(HEAD_TIMEOUT).await;
        if !activity.has_half_head() {
            std::future::pending().await
        }
    };
    let closing = async {
        inner.wait_for_turn(turn, true).await;
        if !activity.was_refused() {
            inner.wait_for_no_moves().await;
        }
    };
    // The connection comes first, so that requests that have arrived are answered. Its errors mean
    // that the client is gone.
    tokio::select! {
        biased;
        _ = &mut connection => return None,
        () = rest => return take_out(connection, activity).await,
        () = half_head => return None,
        () = closing => activity.is_last.store(true, Relaxed),
    }
    tokio::select! {
        biased;
        _ = &mut connection => return None,
        () = inner.wait_for_close(turn) => Pin::new(&mut connection).graceful_shutdown(),
    }
    let _ = connection.await;
    None
}

/// Takes the stream out of a connection that is between two requests. A server that is asked to
/// shut down at that moment finishes immediately, without further reads or writes. If it does not
/// (it still reads the body of an answered request), it closes the connection when it finishes.
async fn take_out<I, S, B>(
    mut connection: UpgradeableConnection<TokioIo<Stream<I>>, S>,
    activity: &Activity,
) -> Option<(Stream<I>, S)>
where
    I: WorkerIo,
    S: Service<Request<Incoming>, Response = Response<B>> + Unpin,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    activity.probing.store(true, Release);
    Pin::new(&mut connection).graceful_shutdown();
    let done = Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
    activity.probing.store(false, Release);
    match done {
        Poll::Ready(Ok(())) => {
            let Parts { io, read_buf, service, .. } = connection.into_parts()?;
            let mut stream = io.into_inner();
            stream.put_back(read_buf);
            activity.restart();
            Some((stream, service))
        }
        Poll::Ready(Err(_)) => None,
        Poll::Pending => {
            let _ = connection.await;
            None
        }
    }
}
