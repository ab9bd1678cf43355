//! Messages between the primary and its workers, and the sockets that they carry.
//!
//! A [`Message`] is any JSON value, perhaps with an open socket ([`Handle`]); a [`Request`] is one
//! that waits for a reply. The primary sends by [`WorkerHandle::send`](crate::WorkerHandle::send)
//! and [`Cluster::broadcast`](crate::Cluster::broadcast) and receives
//! [`Event::Message`](crate::Event::Message); a worker sends by
//! [`Worker::send`](crate::Worker::send) and receives a [`WorkerEvent`].
//!
//! ```no_run
//! # async fn serve(worker: troop::Worker) -> troop::Result<()> {
//! use troop::message::WorkerEvent;
//!
//! while let Some(event) = worker.next_event().await {
//!     if let WorkerEvent::Request(request) = event {
//!         let number: u64 = request.decode()?;
//!         request.reply(&(number + 1))?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use troop_core::wire::outgoing::HandleKind;
use troop_sys::socket::{self, Kind};

use crate::closer::Closer;
use crate::error::Result;
pub use crate::primary::Broadcast;
pub use crate::worker::WorkerEvent;

/// A message from another process: any JSON value, and perhaps an open socket.
#[derive(Clone)]
pub struct Message {
    body: Box<str>,
    handle: Option<Arc<Mutex<Option<Held>>>>,
}

/// A socket that the program has not taken yet. It counts against its sender's limit.
pub(crate) struct Held {
    handle: Option<Handle>,
    counted: Option<Counted>,
    closer: Option<Closer>,
}

/// Counts as long as it is there.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Held {
    /// With a `closer`, dropping it does not block.
    pub(crate) fn new(handle: Handle, count: &Arc<AtomicUsize>, closer: Option<&Closer>) -> Held {
        count.fetch_add(1, Ordering::Relaxed);
        Held {
            handle: Some(handle),
            counted: Some(Counted(count.clone())),
            closer: closer.cloned(),
        }
    }

    /// Returns a socket whose sender is trusted.
    pub(crate) fn uncounted(handle: Handle) -> Held {
        Held { handle: Some(handle), counted: None, closer: None }
    }

    fn take(mut self) -> Option<Handle> {
        self.counted = None;
        self.handle.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(handle), Some(closer)) = (self.handle.take(), &self.closer) {
            closer.close_foreign(handle.into());
        }
    }
}

impl Message {
    pub(crate) fn new(body: &str, handle: Option<Held>) -> Message {
        Message { body: body.into(), handle: handle.map(|h| Arc::new(Mutex::new(Some(h)))) }
    }

    /// Decodes the message into a Rust value.
    ///
    /// # Errors
    /// [`Error::Json`](crate::Error::Json) if it is of another shape.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_str(&self.body)?)
    }

    /// Returns the message as JSON text.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.body
    }

    /// Returns true if a socket came with the message.
    #[must_use]
    pub fn has_handle(&self) -> bool {
        self.handle.is_some()
    }

    /// Takes the socket that came with the message. Among several readers of the same events the
    /// first one gets it; a socket that no reader takes is closed with the last copy of the
    /// message.
    #[must_use]
    pub fn take_handle(&self) -> Option<Handle> {
        self.handle
            .as_ref()
            .and_then(|h| h.lock().unwrap_or_else(PoisonError::into_inner).take())
            .and_then(Held::take)
    }

    pub(crate) fn weight(&self) -> usize {
        // An open socket costs the process more than its bytes.
        self.body.len() + if self.handle.is_some() { 16 * 1024 } else { 0 }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("body", &self.body)
            .field("handle", &self.has_handle())
            .finish()
    }
}

/// An open socket on its way between processes, as Node passes them: `net.Socket`, `net.Server`,
/// `dgram.Socket`.
///
/// All are in blocking mode on the side that receives them here, as those of `std` are; call
/// `set_nonblocking` before giving one to tokio. The mode belongs to the socket, not to one
/// process's copy: a sender that keeps a copy shares it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Handle {
    /// A TCP connection.
    TcpStream(std::net::TcpStream),
    /// A listening TCP socket.
    TcpListener(std::net::TcpListener),
    /// A UDP socket.
    UdpSocket(std::net::UdpSocket),
    /// A Unix stream connection.
    UnixStream(std::os::unix::net::UnixStream),
    /// A listening Unix socket.
    UnixListener(std::os::unix::net::UnixListener),
}

impl Handle {
    /// Wraps a descriptor as the kind of socket that it is.
    ///
    /// # Errors
    /// If the descriptor is no socket, or of a kind that is not passed.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Handle> {
        let kind = socket::kind(&fd)?;
        socket::set_nonblocking(&fd, false)?;
        Ok(match kind {
            Kind::TcpStream => Handle::TcpStream(fd.into()),
            Kind::TcpListener => Handle::TcpListener(fd.into()),
            Kind::Udp { .. } => Handle::UdpSocket(fd.into()),
            Kind::UnixStream => Handle::UnixStream(fd.into()),
            Kind::UnixListener => Handle::UnixListener(fd.into()),
        })
    }

    pub(crate) fn kind(&self) -> HandleKind {
        match self {
            Handle::TcpStream(_) | Handle::UnixStream(_) => HandleKind::Socket,
            Handle::TcpListener(_) | Handle::UnixListener(_) => HandleKind::Server,
            Handle::UdpSocket(s) => {
                HandleKind::Dgram { ipv6: s.local_addr().is_ok_and(|a| a.is_ipv6()) }
            }
        }
    }
}

impl From<Handle> for OwnedFd {
    fn from(handle: Handle) -> OwnedFd {
        match handle {
            Handle::TcpStream(s) => s.into(),
            Handle::TcpListener(s) => s.into(),
            Handle::UdpSocket(s) => s.into(),
            Handle::UnixStream(s) => s.into(),
            Handle::UnixListener(s) => s.into(),
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Handle::TcpStream(s) => s.as_fd(),
            Handle::TcpListener(s) => s.as_fd(),
            Handle::UdpSocket(s) => s.as_fd(),
            Handle::UnixStream(s) => s.as_fd(),
            Handle::UnixListener(s) => s.as_fd(),
        }
    }
}

macro_rules! handle_from {
    ($($variant:ident($type:ty)),* $(,)?) => {
        $(impl From<$type> for Handle {
            fn from(socket: $type) -> Handle {
                Handle::$variant(socket)
            }
        })*
    };
}

handle_from! {
    TcpStream(std::net::TcpStream),
    TcpListener(std::net::TcpListener),
    UdpSocket(std::net::UdpSocket),
    UnixStream(std::os::unix::net::UnixStream),
    UnixListener(std::os::unix::net::UnixListener),
}

/// A request from another process, to be answered by [`Request::reply`]. A request that is dropped
/// is refused, so that no sender waits in vain.
///
/// On the wire it is an ordinary message, `{"troop":"request","id":N,"body":…}`, answered by
/// `{"troop":"reply","id":N,"body":…}` or `{"troop":"reply","id":N,"error":"…"}`, so that programs
/// in any language can take part.
#[derive(Clone)]
pub struct Request {
    body: Box<str>,
    answer: Arc<Answer>,
}

type SendReply = Box<dyn FnOnce(String) + Send>;

struct Answer {
    id: u64,
    send: Mutex<Option<SendReply>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let send = self.send.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(send) = send {
            send(reply_line(self.id, Err("nobody answered the request")));
        }
    }
}

impl Request {
    pub(crate) fn new(id: u64, body: &str, send: SendReply) -> Request {
        Request { body: body.into(), answer: Arc::new(Answer { id, send: Mutex::new(Some(send)) }) }
    }

    /// Decodes the request into a Rust value.
    ///
    /// # Errors
    /// [`Error::Json`](crate::Error::Json) if it is of another shape.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_str(&self.body)?)
    }

    /// Returns the request as JSON text.
    #[must_use]
    pub fn as_json(&self) -> &str {
        &self.body
    }

    /// Sends the reply. Only the first reply counts, also among several readers of the same events.
    /// Never blocks.
    ///
    /// # Errors
    /// [`Error::Json`](crate::Error::Json) if the answer cannot be turned into JSON; the request is
    /// still open then.
    pub fn reply<T: Serialize>(&self, answer: &T) -> Result<()> {
        let body = serde_json::to_string(answer)?;
        self.send(Ok(&body));
        Ok(())
    }

    /// Refuses the request, with a reason that the sender gets as
    /// [`Error::Refused`](crate::Error::Refused).
    pub fn refuse(&self, reason: &str) {
        self.send(Err(reason));
    }

    fn send(&self, answer: std::result::Result<&str, &str>) {
        let send = self.answer.send.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(send) = send {
            send(reply_line(self.answer.id, answer));
        }
    }

    pub(crate) fn weight(&self) -> usize {
        self.body.len()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("id", &self.answer.id).field("body", &self.body).finish()
    }
}

pub(crate) fn reply_line(id: u64, answer: std::result::Result<&str, &str>) -> String {
    match answer {
        Ok(body) => format!("{{\"troop\":\"reply\",\"id\":{id},\"body\":{body}}}"),
        Err(reason) => {
            format!(
                "{{\"troop\":\"reply\",\"id\":{id},\"error\":{}}}",
                troop_core::wire::outgoing::quote(reason)
            )
        }
    }
}

/// Kinds of a user message.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    Message,
    Request { id: u64, body: &'a str },
    Reply { id: u64, result: std::result::Result<&'a str, String> },
}

/// Tells requests and replies from ordinary messages, at next to no cost for those.
pub(crate) fn classify(body: &str) -> Content<'_> {
    #[derive(serde::Deserialize)]
    struct Fields<'a> {
        troop: &'a str,
        id: u64,
        #[serde(borrow, default)]
        body: Option<&'a serde_json::value::RawValue>,
        #[serde(default)]
        error: Option<String>,
    }
    if !body.starts_with("{\"troop\":\"re")
        && memchr::memmem::find(body.as_bytes(), b"\"troop\"").is_none()
    {
        return Content::Message;
    }
    match serde_json::from_str::<Fields<'_>>(body) {
        Ok(Fields { troop: "request", id, body, .. }) => {
            Content::Request { id, body: body.map_or("null", |b| b.get()) }
        }
        Ok(Fields { troop: "reply", id, error: Some(error), .. }) => {
            Content::Reply { id, result: Err(error) }
        }
        Ok(Fields { troop: "reply", id, body, .. }) => {
            Content::Reply { id, result: Ok(body.map_or("null", |b| b.get())) }
        }
        _ => Content::Message,
    }
}
