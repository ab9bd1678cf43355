//! Connections that are counted as open until they are dropped.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::worker::{Inner, Registration};

/// One connection in the count of open ones.
pub(crate) struct OpenConnection {
    pub(super) inner: Arc<Inner>,
    /// The primary's key of its listener; `None` for a listener of this process alone.
    pub(super) key: Option<Arc<str>>,
}

impl OpenConnection {
    pub(crate) fn new(inner: &Arc<Inner>, listener: Option<&Registration>) -> OpenConnection {
        inner.opened();
        OpenConnection { inner: inner.clone(), key: listener.and_then(Registration::key) }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.inner.closed();
    }
}

/// A connection from a shared listener.
///
/// It dereferences to the stream inside, and is counted as an open connection of this worker until
/// it is dropped, or the stream is [taken out](Counted::into_inner). Policies such as
/// `least-connections` use that count, and [`WorkerStats::open`](crate::snapshot::WorkerStats)
/// shows it.
///
/// ```no_run
/// # async fn serve(worker: troop::Worker) -> troop::Result<()> {
/// let listener = worker.listen("0.0.0.0:8000").await?;
/// let (connection, _) = listener.accept().await?;
/// // As tokio's stream.
/// connection.set_nodelay(true)?;
/// // Upgraded and idle: it is no work for this worker any more.
/// let stream: tokio::net::TcpStream = connection.into_inner();
/// # drop(stream);
/// # Ok(())
/// # }
/// ```
pub struct Counted<S> {
    stream: S,
    pub(super) open: OpenConnection,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, open: OpenConnection) -> Counted<S> {
        Counted { stream, open }
    }

    /// The primary's key of its listener; `None` for a listener of this process alone.
    #[cfg(feature = "_serve")]
    pub(crate) fn listener_key(&self) -> Option<Arc<str>> {
        self.open.key.clone()
    }

    /// Returns the stream, and ends the count.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: fmt::Debug> fmt::Debug for Counted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

impl<S> Deref for Counted<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.stream
    }
}

impl<S> DerefMut for Counted<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsFd> AsFd for Counted<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: AsRawFd> AsRawFd for Counted<S> {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: Read> Read for Counted<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl<S> Read for &Counted<S>
where
    for<'a> &'a S: Read,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }
}

impl<S: Write> Write for Counted<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S> Write for &Counted<S>
where
    for<'a> &'a S: Write,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.stream).flush()
    }
}
