//! Listeners for tokio programs.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::{TcpStream, UnixStream};
use troop_sys::listen::UnixPath;
use troop_sys::socket;

use crate::error::{Error, Result};
use crate::worker::{Opened, Worker};
use crate::worker::{Registration, Source};

/// The error of an accept on a listener that is closed because its worker is to finish.
pub(crate) fn draining() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the listener is closed because this worker is to finish")
}

/// A TCP listener, shared with the other workers. Dropping it closes it for this worker only.
///
/// With the feature `axum`, `axum::serve` takes it as it is. Its streams are tokio's own.
#[derive(Debug)]
pub struct TcpListener {
    source: Kind<tokio::net::TcpListener>,
    address: SocketAddr,
    worker: Worker,
    _registration: Option<Registration>,
}

#[derive(Debug)]
enum Kind<L> {
    Handed(std::sync::Arc<crate::worker::ConnQueue>),
    Own(L),
}

impl TcpListener {
    pub(crate) fn new(opened: Opened, worker: &Worker) -> Result<TcpListener> {
        let address =
            opened.name.ok_or_else(|| Error::Settings("the listener has no IP address; is it a Unix socket?".into()))?;
        let source = match opened.source {
            Source::Handed(queue) => Kind::Handed(queue),
            Source::Socket(fd) => {
                Kind::Own(tokio::net::TcpListener::from_std(fd.into()).map_err(Error::io("give the listener to the runtime"))?)
            }
        };
        Ok(TcpListener { source, address, worker: worker.clone(), _registration: opened.registration })
    }

    /// The address that the listener is bound to, with the real port where 0 was asked for.
    ///
    /// # Errors
    /// Never; a `Result` as in tokio.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    /// The next connection. A connection counts as taken by this worker when this returns; what waits meanwhile can still be given to
    /// another one. Cancel safe.
    ///
    /// # Errors
    /// `ConnectionAborted` when this worker [is to finish](Worker::draining): there will be no more. Others as tokio's.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.source {
            Kind::Handed(queue) => loop {
                let fd = queue.take(self.worker.inner()).await.ok_or_else(draining)?;
                // A client that has reset the connection meanwhile has no address any more.
                if let Some(peer) = socket::peer_address(&fd) {
                    return Ok((TcpStream::from_std(fd.into())?, peer));
                }
            },
            Kind::Own(listener) => tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.worker.draining() => Err(draining()),
            },
        }
    }
}

/// A Unix socket listener, shared with the other workers.
#[derive(Debug)]
pub struct UnixListener {
    source: Kind<tokio::net::UnixListener>,
    path: PathBuf,
    worker: Worker,
    _registration: Option<Registration>,
    _file: Option<UnixPath>,
}

impl UnixListener {
    pub(crate) fn new(opened: Opened, worker: &Worker) -> Result<UnixListener> {
        let source = match opened.source {
            Source::Handed(queue) => Kind::Handed(queue),
            Source::Socket(fd) => {
                Kind::Own(tokio::net::UnixListener::from_std(fd.into()).map_err(Error::io("give the listener to the runtime"))?)
            }
        };
        let path = opened.path.unwrap_or_default().into();
        Ok(UnixListener { source, path, worker: worker.clone(), _registration: opened.registration, _file: opened.file })
    }

    /// The path that was asked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection; see [`TcpListener::accept`]. Cancel safe.
    ///
    /// # Errors
    /// As [`TcpListener::accept`].
    pub async fn accept(&self) -> io::Result<UnixStream> {
        match &self.source {
            Kind::Handed(queue) => {
                let fd = queue.take(self.worker.inner()).await.ok_or_else(draining)?;
                UnixStream::from_std(fd.into())
            }
            Kind::Own(listener) => tokio::select! {
                accepted = listener.accept() => accepted.map(|(stream, _)| stream),
                () = self.worker.draining() => Err(draining()),
            },
        }
    }
}

#[cfg(feature = "axum")]
mod axum_listeners {
    use std::io;
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::time::Duration;

    use axum::serve::Listener;
    use tokio::net::{TcpStream, UnixStream};

    use super::{TcpListener, UnixListener};

    /// axum's contract: errors are not returned. Those of one connection are skipped; a listener that is closed waits for the graceful
    /// shutdown, which the same event starts; lack of descriptors is waited out.
    async fn after(error: io::Error) {
        match error.kind() {
            io::ErrorKind::ConnectionAborted if error.raw_os_error().is_none() => std::future::pending().await,
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused => {}
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }

    impl Listener for TcpListener {
        type Io = TcpStream;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (TcpStream, SocketAddr) {
            loop {
                match TcpListener::accept(self).await {
                    Ok(accepted) => return accepted,
                    Err(e) => after(e).await,
                }
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            TcpListener::local_addr(self)
        }
    }

    impl Listener for UnixListener {
        type Io = UnixStream;
        type Addr = PathBuf;

        async fn accept(&mut self) -> (UnixStream, PathBuf) {
            loop {
                match UnixListener::accept(self).await {
                    Ok(stream) => return (stream, PathBuf::new()),
                    Err(e) => after(e).await,
                }
            }
        }

        fn local_addr(&self) -> io::Result<PathBuf> {
            Ok(self.path.clone())
        }
    }
}
