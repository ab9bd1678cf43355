//! One connection, from its first request to the moment at which it is to be closed.

use std::error::Error;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::worker::Worker;

/// Serves a connection until its client closes it, or until its moment has come after the worker is
/// to finish. `open` is held until it is closed, also when it has become another protocol's.
pub(super) async fn serve<I, S, B>(io: I, service: S, worker: &Worker, open: watch::Receiver<()>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let is_last = Arc::new(AtomicBool::new(false));
    let last = is_last.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        // Later versions have other ways to say it.
        let tells = request.version() <= Version::HTTP_11;
        let (answer, last) = (service.call(request), last.clone());
        async move {
            let mut response = answer.await?;
            if tells
                && last.load(Ordering::Relaxed)
                && response.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                // So that a client which goes on asking learns of the end before it asks again.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, S::Error>(response)
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let io = TokioIo::new(Held { io, _open: open });
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
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
