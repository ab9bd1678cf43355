//! Serving HTTP to the end: servers whose idle connections move to another worker when theirs is
//! replaced, so that clients which keep them open notice nothing. What cannot move is closed one
//! after another, so that they do not all come back at once.
//!
//! | for | feature | |
//! | --- | --- | --- |
//! | axum, and whatever `axum::serve` takes | `axum` | [`serve`](crate::serve()) |
//! | a service of hyper's | `hyper` | [`hyper`](crate::serve::hyper()), and [`hyper_within`] with [limits](Limits) on silent clients and on connections |
//! | tonic | `axum` and `http2` | `troop::serve(listener, routes.into_axum_router())`, with tonic's `Routes` |
//! | tonic's own server | `tonic` | [`TcpListener::incoming`](crate::TcpListener::incoming), a stream of connections |
//!
//! With the feature `http2` they speak HTTP/2, too.

mod activity;
#[cfg(feature = "axum")]
mod axum;
mod connection;
#[cfg(feature = "http2")]
mod http2;
#[cfg(feature = "hyper")]
mod hyper;
mod stream;
#[cfg_attr(not(feature = "hyper"), expect(dead_code, reason = "only that server has limits"))]
mod waiting;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

#[cfg(feature = "axum")]
pub use self::axum::{AcceptedBy, Accepting, Handover, serve};
#[cfg(feature = "hyper")]
pub use self::hyper::{Limits, hyper, hyper_within};
use crate::net::{self, TcpListener, TcpStream, UnixListener, UnixStream};
use crate::worker::Worker;

/// How a server came to its end. All of its connections have been closed by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// This worker was to finish: its primary asked for it, or the worker itself left.
    Drained,
    /// The primary has died. The process ends in any case after five seconds, unless it
    /// [asked to go on](Worker::outlive_primary).
    PrimaryGone,
}

impl Served {
    pub(crate) fn by(worker: &Worker) -> Served {
        if worker.inner().is_leaving() { Served::Drained } else { Served::PrimaryGone }
    }
}

/// A listener of a worker's, whose connections can be served: [`TcpListener`] and [`UnixListener`].
pub trait WorkerListener: sealed::Sealed + std::fmt::Debug + Send + 'static {
    /// A connection.
    type Io: WorkerIo;
    /// Where it comes from.
    type Address: Clone + std::fmt::Debug + Send + Sync + Unpin + 'static;

    /// Whose it is.
    fn worker(&self) -> &Worker;

    /// The next connection. Waits out what keeps this process from accepting, and for ever once the
    /// worker is to finish.
    fn next(&mut self) -> impl Future<Output = (Self::Io, Self::Address)> + Send;

    /// Where it listens.
    ///
    /// # Errors
    /// Never; a `Result` as in tokio.
    fn local(&self) -> io::Result<Self::Address>;
}

/// A connection of a worker's that can be served: [`TcpStream`] and [`UnixStream`].
pub trait WorkerIo:
    sealed::Returnable + AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static
{
}

impl WorkerIo for TcpStream {}
impl WorkerIo for UnixStream {}

mod sealed {
    use std::future::Future;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use crate::net::Counted;
    use crate::worker::Worker;

    pub trait Sealed {}
    impl Sealed for crate::net::TcpListener {}
    impl Sealed for crate::net::UnixListener {}

    /// See [`Worker::return_connection`].
    pub trait Returnable: Sized {
        fn listener_key(&self) -> Option<Arc<str>>;

        fn give_back(
            self,
            worker: &Worker,
        ) -> impl Future<Output = Result<(), Option<Self>>> + Send;
    }

    impl<S: AsFd + Send + Sync> Returnable for Counted<S> {
        fn listener_key(&self) -> Option<Arc<str>> {
            Counted::listener_key(self)
        }

        async fn give_back(self, worker: &Worker) -> Result<(), Option<Self>> {
            let returned = match worker.is_draining() {
                true => worker.return_connection(self).await,
                false => worker.offer_connection(self).await,
            };
            returned.map_err(crate::net::NotReturned::into_stream)
        }
    }
}

impl WorkerListener for TcpListener {
    type Io = TcpStream;
    type Address = SocketAddr;

    fn worker(&self) -> &Worker {
        TcpListener::worker(self)
    }

    async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.accept().await {
                Ok(accepted) => return accepted,
                Err(e) => net::after(e).await,
            }
        }
    }

    fn local(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }
}

impl WorkerListener for UnixListener {
    type Io = UnixStream;
    type Address = PathBuf;

    fn worker(&self) -> &Worker {
        UnixListener::worker(self)
    }

    async fn next(&mut self) -> (UnixStream, PathBuf) {
        loop {
            match self.accept().await {
                Ok(stream) => return (stream, PathBuf::new()),
                Err(e) => net::after(e).await,
            }
        }
    }

    fn local(&self) -> io::Result<PathBuf> {
        Ok(self.path().to_owned())
    }
}

/// The connections of a server that are open, of which each has a copy of [`Open::one`].
struct Open {
    closed: watch::Sender<()>,
    one: watch::Receiver<()>,
}

impl Open {
    fn new() -> Open {
        let (closed, one) = watch::channel(());
        Open { closed, one }
    }

    /// Returns the number of those that are open.
    #[cfg(feature = "hyper")]
    fn count(&self) -> usize {
        self.closed.receiver_count() - 1
    }

    /// Waits until the last one is closed.
    async fn all_closed(self) {
        drop(self.one);
        self.closed.closed().await;
    }
}
