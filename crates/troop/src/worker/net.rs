//! Listeners and connections of workers, for tokio programs. The module
//! [`blocking`](crate::blocking) has the same for plain threads.
//!
//! A listener is opened by [`Worker::listen`], [`Worker::listen_unix`] or [`Worker::bind_udp`]. Its
//! options are those of [`Listen`]:
//!
//! ```no_run
//! # async fn serve(worker: troop::Worker) -> troop::Result<()> {
//! use troop::net::Listen;
//!
//! let web = worker.listen(Listen::at("[::]:8000").backlog(1024).ipv6_only(true)).await?;
//! let local = worker.listen_unix("/run/app.sock").await?;
//! let dns = worker.bind_udp("127.0.0.1:53").await?;
//! println!("port {}, {}", web.local_addr()?.port(), local.path().display());
//! let mut packet = [0; 512];
//! let (length, client) = dns.recv_from(&mut packet).await?;
//! # let _ = (length, client);
//! # Ok(())
//! # }
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use troop_sys::socket;
use troop_sys::unix::UnixFile;

pub use super::counted::Counted;
use super::counted::OpenConnection;
pub use super::incoming::Incoming;
pub use super::moves::NotReturned;
use crate::error::{Error, Result};
use crate::worker::{ConnQueue, Opened, Registration, Source, Worker};
pub use crate::worker::{Draining, Listen};

/// The error of an accept on a listener that is closed because its worker is to finish.
pub(crate) fn draining() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the listener is closed because this worker is to finish",
    )
}

/// Whether an accept failed because there will be no more connections.
pub(crate) fn is_draining(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted && error.raw_os_error().is_none()
}

/// A TCP connection: tokio's stream, [counted](Counted) as open at this worker.
pub type TcpStream = Counted<tokio::net::TcpStream>;

/// A Unix stream connection: tokio's stream, [counted](Counted) as open at this worker.
pub type UnixStream = Counted<tokio::net::UnixStream>;

/// A TCP listener that the workers share. Dropping it closes it for this worker only.
///
/// With the feature `axum`, `axum::serve` takes it as it is.
///
/// ```no_run
/// # async fn serve(worker: troop::Worker) -> troop::Result<()> {
/// use tokio::io::AsyncWriteExt;
///
/// let listener = worker.listen("0.0.0.0:8000").await?;
/// // Ends when the worker is to finish.
/// while let Ok((mut stream, peer)) = listener.accept().await {
///     tokio::spawn(async move { stream.write_all(format!("hello, {peer}\n").as_bytes()).await });
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TcpListener {
    source: Kind<tokio::net::TcpListener>,
    address: SocketAddr,
    worker: Worker,
    registration: Option<Registration>,
}

#[derive(Debug)]
enum Kind<L> {
    /// From the primary.
    Handed(Arc<ConnQueue>),
    /// From a socket of this process, and from a primary that steers.
    Own(L, Option<Arc<ConnQueue>>),
}

/// Accepts from the primary (first, because those connections have waited already) and from the
/// socket, for a listener that accepts by itself.
async fn handed(queue: Option<&ConnQueue>, worker: &Worker) -> io::Result<OwnedFd> {
    match queue {
        // Closed when this worker is to finish.
        Some(queue) => queue.take(worker.inner()).await.ok_or_else(draining),
        None => {
            worker.draining().await;
            Err(draining())
        }
    }
}

impl TcpListener {
    pub(crate) fn new(opened: Opened, worker: &Worker) -> Result<TcpListener> {
        let address = opened.name.ok_or_else(|| {
            Error::Settings("the listener has no IP address; is it a Unix socket?".into())
        })?;
        let source = match opened.source {
            Source::Handed(queue) => Kind::Handed(queue),
            Source::Socket(fd, queue) => {
                let listener = tokio::net::TcpListener::from_std(fd.into());
                Kind::Own(listener.map_err(Error::io("give the listener to the runtime"))?, queue)
            }
        };
        Ok(TcpListener {
            source,
            address,
            worker: worker.clone(),
            registration: opened.registration,
        })
    }

    #[cfg(feature = "_serve")]
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Returns the address that the listener is bound to, with the real port where 0 was asked for.
    ///
    /// # Errors
    /// Never; a `Result` as in tokio.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    /// Waits for the next connection. A connection counts as taken by this worker when this
    /// returns; waiting connections can still go to another worker. Cancel safe.
    ///
    /// # Errors
    /// `ConnectionAborted` when this worker [is to finish](Worker::draining): there will be no
    /// more. Others as tokio's.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let fd = match &self.source {
                Kind::Handed(queue) => {
                    queue.take(self.worker.inner()).await.ok_or_else(draining)?
                }
                Kind::Own(listener, queue) => tokio::select! {
                    biased;
                    fd = handed(queue.as_deref(), &self.worker) => fd?,
                    accepted = listener.accept() => {
                        let (stream, peer) = accepted?;
                        return Ok((Counted::new(stream, OpenConnection::new(self.worker.inner(), self.registration.as_ref())), peer));
                    }
                },
            };
            // A client that has reset the connection meanwhile has no address any more.
            if let Some(peer) = socket::peer_address(&fd) {
                let stream = tokio::net::TcpStream::from_std(fd.into())?;
                return Ok((
                    Counted::new(
                        stream,
                        OpenConnection::new(self.worker.inner(), self.registration.as_ref()),
                    ),
                    peer,
                ));
            }
        }
    }
}

/// A Unix socket listener that the workers share. Dropping it closes it for this worker only.
///
/// ```no_run
/// # async fn serve(worker: troop::Worker) -> troop::Result<()> {
/// use tokio::io::AsyncWriteExt;
///
/// let listener = worker.listen_unix("/run/app.sock").await?;
/// while let Ok(mut stream) = listener.accept().await {
///     tokio::spawn(async move { stream.write_all(b"hello\n").await });
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct UnixListener {
    source: Kind<tokio::net::UnixListener>,
    path: PathBuf,
    worker: Worker,
    registration: Option<Registration>,
    _file: Option<UnixFile>,
}

impl UnixListener {
    pub(crate) fn new(opened: Opened, worker: &Worker) -> Result<UnixListener> {
        let source = match opened.source {
            Source::Handed(queue) => Kind::Handed(queue),
            Source::Socket(fd, queue) => {
                let listener = tokio::net::UnixListener::from_std(fd.into());
                Kind::Own(listener.map_err(Error::io("give the listener to the runtime"))?, queue)
            }
        };
        let path = opened.path.unwrap_or_default().into();
        Ok(UnixListener {
            source,
            path,
            worker: worker.clone(),
            registration: opened.registration,
            _file: opened.file,
        })
    }

    #[cfg(feature = "_serve")]
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Returns the path that was asked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next connection; see [`TcpListener::accept`]. Cancel safe.
    ///
    /// # Errors
    /// As [`TcpListener::accept`].
    pub async fn accept(&self) -> io::Result<UnixStream> {
        let stream = match &self.source {
            Kind::Handed(queue) => {
                let fd = queue.take(self.worker.inner()).await.ok_or_else(draining)?;
                tokio::net::UnixStream::from_std(fd.into())?
            }
            Kind::Own(listener, queue) => tokio::select! {
                biased;
                fd = handed(queue.as_deref(), &self.worker) => tokio::net::UnixStream::from_std(fd?.into())?,
                accepted = listener.accept() => accepted?.0,
            },
        };
        Ok(Counted::new(
            stream,
            OpenConnection::new(self.worker.inner(), self.registration.as_ref()),
        ))
    }
}

/// Reacts to an error of an accept. Errors of a single connection are skipped; a closed listener
/// waits for the graceful shutdown, which the same event starts; a lack of descriptors is followed
/// by a pause.
#[cfg(feature = "_serve")]
pub(crate) async fn after(error: io::Error) {
    match error.kind() {
        _ if is_draining(&error) => std::future::pending().await,
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused => {}
        _ => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
    }
}

#[cfg(feature = "axum")]
mod axum_listeners {
    use std::io;
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use axum::serve::Listener;

    use super::{TcpListener, TcpStream, UnixListener, UnixStream};
    use crate::serve::WorkerListener;

    impl Listener for TcpListener {
        type Io = TcpStream;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (TcpStream, SocketAddr) {
            self.next().await
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            self.local()
        }
    }

    impl Listener for UnixListener {
        type Io = UnixStream;
        type Addr = PathBuf;

        async fn accept(&mut self) -> (UnixStream, PathBuf) {
            self.next().await
        }

        fn local_addr(&self) -> io::Result<PathBuf> {
            self.local()
        }
    }
}
