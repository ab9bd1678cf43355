//! The worker's side for programs with plain threads. A separate thread handles the channel.
//!
//! ```no_run
//! # fn main() -> troop::Result<()> {
//! use std::io::Write;
//!
//! let worker = troop::worker()?.blocking()?;
//! let listener = worker.listen("127.0.0.1:8000")?;
//! // Ends when the worker is to finish.
//! while let Ok((mut stream, _)) = listener.accept() {
//!     stream.write_all(b"hello\n")?;
//! }
//! worker.finish();
//! # Ok(())
//! # }
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Handle as Runtime, RuntimeFlavor};
use tokio::sync::oneshot;
use troop_core::WorkerId;
use troop_sys::socket;
use troop_sys::unix::UnixFile;

use super::counted::{Counted, OpenConnection};
use crate::error::{Error, Result};
use crate::message::Handle;
use crate::net::draining;
use crate::worker::{
    ConnQueue, Inner, Listen, Opened, Registration, Source, WorkerEvent, WorkerRole,
};

/// Time that [`Worker::finish`] waits until the last messages are written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// A running worker. Cheap to copy. Every method may be called from any thread, but not from inside
/// a tokio runtime.
#[derive(Debug, Clone)]
pub struct Worker {
    worker: crate::worker::Worker,
    runtime: Runtime,
    _thread: Arc<Thread>,
}

/// Ends the thread with the last worker.
#[derive(Debug)]
struct Thread {
    end: Option<oneshot::Sender<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
    }
}

impl Worker {
    pub(crate) fn start(role: WorkerRole) -> Result<Worker> {
        let (started, start) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let run = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(e) => {
                    return drop(
                        started.send(Err(Error::Io { doing: "start a runtime", source: e })),
                    );
                }
            };
            runtime.block_on(async {
                let worker = role.start();
                let inner = worker.as_ref().ok().map(|w| w.inner().clone());
                let _ = started.send(worker.map(|w| (w, Runtime::current())));
                let _ = ended.await;
                if let Some(inner) = inner {
                    inner.finish(FLUSH_TIMEOUT).await;
                }
            });
        };
        let thread = std::thread::Builder::new().name("troop-channel".into()).spawn(run);
        thread.map_err(Error::io("start a thread"))?;
        let (worker, runtime) = start.recv().map_err(|_| Error::Closed)??;
        debug_assert_eq!(runtime.runtime_flavor(), RuntimeFlavor::CurrentThread);
        Ok(Worker { worker, runtime, _thread: Arc::new(Thread { end: Some(end) }) })
    }

    /// Returns the worker's number in the primary; `None` if it runs alone.
    #[must_use]
    pub fn id(&self) -> Option<WorkerId> {
        self.worker.id()
    }

    fn open(&self, listen: &Listen) -> Result<Opened> {
        self.runtime.block_on(self.worker.open(listen))
    }

    /// Listens for TCP connections; see [`crate::Worker::listen`]. Blocks until the primary has
    /// answered.
    ///
    /// # Errors
    /// As there.
    pub fn listen(&self, address: impl Into<Listen>) -> Result<TcpListener> {
        let opened = self.open(&address.into())?;
        let address = opened.name.ok_or_else(|| {
            Error::Settings("the listener has no IP address; is it a Unix socket?".into())
        })?;
        Ok(TcpListener { acceptor: self.acceptor(opened), address })
    }

    /// Listens on a Unix socket path.
    ///
    /// # Errors
    /// As [`Worker::listen`].
    pub fn listen_unix(&self, path: impl AsRef<std::path::Path>) -> Result<UnixListener> {
        let opened = self.open(&Listen::unix(path))?;
        Ok(UnixListener { acceptor: self.acceptor(opened) })
    }

    /// Binds a UDP socket that all workers share.
    ///
    /// # Errors
    /// As [`Worker::listen`].
    pub fn bind_udp(&self, address: impl Into<Listen>) -> Result<std::net::UdpSocket> {
        let socket = self.open(&address.into().udp())?.into_socket()?;
        socket::set_nonblocking(&socket, false).map_err(Error::io("make the socket block"))?;
        Ok(socket.into())
    }

    fn acceptor(&self, opened: Opened) -> Acceptor {
        Acceptor {
            source: opened.source,
            inner: self.worker.inner().clone(),
            registration: opened.registration,
            _file: opened.file,
            _worker: self.clone(),
        }
    }

    /// Returns true if this worker is to finish.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.worker.is_draining()
    }

    /// Blocks until this worker is to finish.
    pub fn wait_until_draining(&self) {
        self.runtime.block_on(self.worker.draining());
    }

    /// Blocks until this worker has no connection open; see [`crate::Worker::idle`].
    pub fn wait_until_idle(&self) {
        self.runtime.block_on(self.worker.idle());
    }

    /// Lets this process go on when its primary dies; see [`crate::Worker::outlive_primary`].
    pub fn outlive_primary(&self) {
        self.worker.outlive_primary();
    }

    /// Leaves the cluster; see [`crate::Worker::disconnect`].
    ///
    /// # Errors
    /// As there.
    pub fn disconnect(&self) -> Result<()> {
        self.runtime.block_on(self.worker.disconnect())
    }

    /// Blocks until the next message or request from the primary. Returns `None` when the channel
    /// is closed or `timeout` has passed.
    #[must_use]
    pub fn next_event(&self, timeout: Duration) -> Option<WorkerEvent> {
        self.runtime.block_on(async {
            tokio::time::timeout(timeout, self.worker.next_event()).await.ok().flatten()
        })
    }

    /// Sends a message to the primary, waiting for room in the queue.
    ///
    /// # Errors
    /// As [`crate::Worker::send`].
    pub fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        match self.worker.try_send(message) {
            Err(Error::Full) => self.runtime.block_on(self.worker.send(message)),
            other => other,
        }
    }

    /// Sends a message with an open socket; see [`crate::Worker::send_handle`].
    ///
    /// # Errors
    /// As there.
    pub fn send_handle<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: impl Into<Handle>,
    ) -> Result<()> {
        self.runtime.block_on(self.worker.send_handle(message, handle))
    }

    /// Sends a request to the primary and waits up to `timeout` for the reply.
    ///
    /// # Errors
    /// As [`crate::Worker::request`].
    pub fn request<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        question: &Q,
        timeout: Duration,
    ) -> Result<A> {
        self.runtime.block_on(self.worker.request(question, timeout))
    }

    /// Writes the last messages and closes the channel; call it at the end of `main`. Blocks for up
    /// to 5 s.
    pub fn finish(self) {
        let inner = self.worker.inner().clone();
        self.runtime.block_on(inner.finish(FLUSH_TIMEOUT));
    }
}

/// A TCP connection: the stream of `std`, [counted](Counted) as open at this worker.
pub type TcpStream = Counted<std::net::TcpStream>;

/// A Unix stream connection: the stream of `std`, [counted](Counted) as open at this worker.
pub type UnixStream = Counted<std::os::unix::net::UnixStream>;

#[derive(Debug)]
struct Acceptor {
    source: Source,
    inner: Arc<Inner>,
    registration: Option<Registration>,
    _file: Option<UnixFile>,
    _worker: Worker,
}

impl Acceptor {
    fn accept(&self) -> io::Result<OwnedFd> {
        let fd = match &self.source {
            Source::Handed(queue) => {
                ConnQueue::take_blocking(queue, &self.inner).ok_or_else(draining)?
            }
            Source::Socket(listener, queue) => loop {
                if *self.inner.draining().borrow() {
                    return Err(draining());
                }
                // Connections from the primary have waited already, so they come first.
                if let Some(fd) = queue
                    .as_ref()
                    .map_or(Ok(None), |queue| queue.try_take(&self.inner))
                    .map_err(|()| draining())?
                {
                    break fd;
                }
                match socket::accept(listener.as_fd()) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.wait(listener, queue.as_deref())?
                    }
                    other => break other?,
                }
            },
        };
        socket::set_nonblocking(&fd, false)?;
        Ok(fd)
    }

    /// Waits until there may be a connection, or this worker is to finish.
    fn wait(&self, listener: &OwnedFd, queue: Option<&ConnQueue>) -> io::Result<()> {
        let mut waiting = vec![PollFd::new(listener, PollFlags::IN)];
        if let Some(event_fd) = &self.inner.drain_bell {
            waiting.push(PollFd::new(event_fd, PollFlags::IN));
        }
        let handed = queue.map(ConnQueue::event_fd).transpose()?;
        waiting.extend(handed.map(|event_fd| PollFd::new(event_fd, PollFlags::IN)));
        match rustix::event::poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// A TCP listener that the workers share. May be used from several threads at once.
#[derive(Debug)]
pub struct TcpListener {
    acceptor: Acceptor,
    address: SocketAddr,
}

impl TcpListener {
    /// Returns the address that the listener is bound to.
    ///
    /// # Errors
    /// Never; a `Result` as in `std`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    /// Blocks until the next connection, which is in blocking mode.
    ///
    /// # Errors
    /// `ConnectionAborted` when this worker is to finish: there will be no more. Others as those of
    /// `std`.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let fd = self.acceptor.accept()?;
            if let Some(peer) = socket::peer_address(&fd) {
                return Ok((
                    Counted::new(
                        fd.into(),
                        OpenConnection::new(
                            &self.acceptor.inner,
                            self.acceptor.registration.as_ref(),
                        ),
                    ),
                    peer,
                ));
            }
        }
    }
}

/// A Unix socket listener that the workers share.
#[derive(Debug)]
pub struct UnixListener {
    acceptor: Acceptor,
}

impl UnixListener {
    /// Blocks until the next connection; see [`TcpListener::accept`].
    ///
    /// # Errors
    /// As there.
    pub fn accept(&self) -> io::Result<UnixStream> {
        Ok(Counted::new(
            self.acceptor.accept()?.into(),
            OpenConnection::new(&self.acceptor.inner, self.acceptor.registration.as_ref()),
        ))
    }
}
