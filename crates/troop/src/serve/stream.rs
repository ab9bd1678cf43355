//! The stream of an HTTP server, which can be taken away from the server between two requests.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::WorkerIo;
use super::activity::Activity;
use crate::worker::Worker;

/// A connection, which is waited for also after an upgrade to another protocol.
pub(super) struct Stream<I> {
    io: I,
    /// Bytes that were read and not used; they are read again first.
    ahead: Bytes,
    activity: Arc<Activity>,
    open: watch::Receiver<()>,
    /// How long the client may take nothing of what is written.
    limit: Option<Duration>,
    /// Until when it may take nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<I: WorkerIo> Stream<I> {
    pub(super) fn new(
        io: I,
        activity: Arc<Activity>,
        open: watch::Receiver<()>,
        limit: Option<Duration>,
    ) -> Stream<I> {
        Stream { io, ahead: Bytes::new(), activity, open, limit, stalled: None }
    }

    /// Notes the result of a write. It is an error if the client has taken nothing for too long.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.activity.written(result.is_pending());
        let Some(limit) = self.limit.filter(|_| result.is_pending()) else {
            self.stalled = None;
            return result;
        };
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Puts back bytes that a server has read and not used.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        if self.ahead.is_empty() {
            self.ahead = bytes;
        } else if !bytes.is_empty() {
            self.ahead = [&bytes[..], &self.ahead[..]].concat().into();
        }
    }

    /// Whether everything that was read from it has been used.
    pub(super) fn is_at_rest(&self) -> bool {
        self.ahead.is_empty()
    }

    /// The primary's key of its listener.
    pub(super) fn listener_key(&self) -> Option<Arc<str>> {
        self.io.listener_key()
    }

    /// Returns the connection to the primary, for another worker. The error has the connection if
    /// the primary did not take it, and none if its owner is unknown.
    pub(super) async fn give_back(self, worker: &Worker) -> Result<(), Option<Stream<I>>> {
        let Stream { io, ahead, activity, open, limit, stalled } = self;
        let kept = io.give_back(worker).await;
        kept.map_err(|io| io.map(|io| Stream { io, ahead, activity, open, limit, stalled }))
    }

    /// Waits for the first bytes, and returns whether they are those of HTTP/2; `None` if none
    /// arrive.
    #[cfg(feature = "http2")]
    pub(super) async fn is_http2(&mut self) -> Option<bool> {
        use tokio::io::AsyncReadExt;
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let mut buffer = [0; PREFACE.len()];
        while self.ahead.len() < PREFACE.len() {
            let more = &mut buffer[self.ahead.len()..];
            let count = self.io.read(more).await.ok().filter(|count| *count > 0)?;
            let len = self.ahead.len() + count;
            // One allocation, unless the client is slow or splits them.
            self.ahead = Bytes::copy_from_slice(&buffer[..len]);
            if !PREFACE.starts_with(&self.ahead) {
                return Some(false);
            }
        }
        Some(true)
    }

    fn is_probed(&self) -> bool {
        self.activity.probing.load(Acquire)
    }
}

impl<I: WorkerIo> AsyncRead for Stream<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_probed() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let result = if self.ahead.is_empty() {
            Pin::new(&mut self.io).poll_read(cx, buffer)
        } else {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(count));
            Poll::Ready(Ok(()))
        };
        if buffer.filled().len() > before {
            self.activity.read();
        }
        result
    }
}

impl<I: WorkerIo> AsyncWrite for Stream<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_probed() {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_probed() {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_probed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A server that is done shuts the stream down, which must not happen while it is being
        // taken away.
        if self.is_probed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
