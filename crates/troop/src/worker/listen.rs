//! Addresses and options of listeners, and the requests for them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use troop_core::event::AddressType;
use troop_sys::unix::{Rights, UnixFile, unix};
use troop_sys::{listen as sys, socket};

use super::inner::{Ask, Grant, Inner, Reply};
use super::queue::ConnQueue;
use crate::error::{Error, Result};

/// Time that the primary has to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Node's default length of an accept queue.
const BACKLOG: u32 = 511;

/// An address to listen on, with options. Addresses and ports convert into it:
/// `worker.listen("0.0.0.0:80")`, `worker.listen(8000)`.
#[derive(Debug, Clone)]
#[must_use]
pub struct Listen {
    target: Target,
    backlog: u32,
    ipv6_only: bool,
    exclusive: bool,
    reuse_address: bool,
    udp: bool,
}

#[derive(Debug, Clone)]
enum Target {
    Text(String),
    Address(SocketAddr),
    Any(u16),
    Unix(String),
    Fd(i32),
}

impl Listen {
    fn to(target: Target) -> Listen {
        Listen {
            target,
            backlog: BACKLOG,
            ipv6_only: false,
            exclusive: false,
            reuse_address: false,
            udp: false,
        }
    }

    /// Starts from an address, to set options on.
    pub fn at(address: impl Into<Listen>) -> Listen {
        address.into()
    }

    /// Names a Unix socket path. A relative one is taken from this process's working directory.
    pub fn unix(path: impl AsRef<Path>) -> Listen {
        let path = path.as_ref();
        // Abstract names begin with a NUL byte and are no paths.
        let text = path.to_string_lossy().into_owned();
        let absolute =
            std::path::absolute(path).map_or(text.clone(), |p| p.to_string_lossy().into_owned());
        Listen::to(Target::Unix(if text.starts_with('\0') { text } else { absolute }))
    }

    /// Names a descriptor of the primary by its number, such as one inherited from `systemd`.
    /// Without a primary, a descriptor of this process.
    pub fn fd(number: i32) -> Listen {
        Listen::to(Target::Fd(number))
    }

    /// Sets the length of the accept queue. Default: 511. The first worker's wins.
    pub fn backlog(mut self, length: u32) -> Listen {
        self.backlog = length;
        self
    }

    /// Keeps an IPv6 address from taking IPv4 connections.
    pub fn ipv6_only(mut self, only: bool) -> Listen {
        self.ipv6_only = only;
        self
    }

    /// Opens the socket in this process, without the primary.
    pub fn exclusive(mut self, exclusive: bool) -> Listen {
        self.exclusive = exclusive;
        self
    }

    /// Sets `SO_REUSEADDR`, for UDP.
    pub fn reuse_address(mut self, reuse: bool) -> Listen {
        self.reuse_address = reuse;
        self
    }

    pub(crate) fn udp(mut self) -> Listen {
        self.udp = true;
        self
    }

    fn text(&self) -> String {
        match &self.target {
            Target::Text(text) | Target::Unix(text) => text.clone(),
            Target::Address(address) => address.to_string(),
            Target::Any(port) => format!("*:{port}"),
            Target::Fd(fd) => format!("fd {fd}"),
        }
    }

    /// Returns the addresses to try in order, as `std` does with a name that has several.
    fn requests(&self) -> Result<Vec<Wanted>> {
        let bad = |reason: String| Error::Address { address: self.text(), reason };
        let requested = |address: Option<IpAddr>, port: u16| {
            let v6 = address.is_some_and(|a| a.is_ipv6());
            let kind = match (self.udp, v6) {
                (false, false) => AddressType::Tcp4,
                (false, true) => AddressType::Tcp6,
                (true, false) => AddressType::Udp4,
                (true, true) => AddressType::Udp6,
            };
            // Node's UDP sockets always name an address.
            let address = address.or(self.udp.then_some(Ipv4Addr::UNSPECIFIED.into()));
            let requested = RequestedAddress {
                address: address.map(|a| a.to_string()),
                port: Some(i64::from(port)),
                kind,
                fd: self.udp.then_some(-1),
            };
            self.want(requested)
        };
        Ok(match &self.target {
            Target::Any(port) => vec![requested(None, *port)],
            Target::Address(address) => vec![requested(Some(address.ip()), address.port())],
            Target::Text(text) => {
                let any = text.strip_prefix('*').unwrap_or(text);
                if let Ok(port) = any.strip_prefix(':').unwrap_or(any).parse() {
                    return Ok(vec![requested(None, port)]);
                }
                let all: Vec<_> = text.to_socket_addrs().map_err(|e| bad(e.to_string()))?.collect();
                if all.is_empty() {
                    return Err(bad("the name has no address".into()));
                }
                all.into_iter().map(|a| requested(Some(a.ip()), a.port())).collect()
            }
            Target::Unix(path) => {
                vec![self.want(RequestedAddress {
                    address: Some(path.clone()),
                    port: Some(-1),
                    kind: AddressType::Unix,
                    fd: None,
                })]
            }
            Target::Fd(fd) => {
                let kind = if self.udp { AddressType::Udp4 } else { AddressType::Fd };
                vec![self.want(RequestedAddress {
                    address: None,
                    port: None,
                    kind,
                    fd: Some(i64::from(*fd)),
                })]
            }
        })
    }

    fn want(&self, requested: RequestedAddress) -> Wanted {
        let v6_flag = u32::from(self.ipv6_only);
        let flags = match requested.kind {
            AddressType::Udp4 | AddressType::Udp6 => {
                Some(v6_flag | if self.reuse_address { 4 } else { 0 })
            }
            AddressType::Tcp6 => Some(v6_flag),
            AddressType::Tcp4 if requested.address.is_some() => Some(0),
            _ => None,
        };
        Wanted { requested, index: 0, flags, backlog: (!self.udp).then_some(self.backlog) }
    }
}

macro_rules! listen_from {
    ($($from:ty => |$value:ident| $target:expr),* $(,)?) => {
        $(impl From<$from> for Listen {
            fn from($value: $from) -> Listen {
                Listen::to($target)
            }
        })*
    };
}

listen_from! {
    &str => |text| Target::Text(text.to_owned()),
    String => |text| Target::Text(text),
    SocketAddr => |address| Target::Address(address),
    u16 => |port| Target::Any(port),
    (IpAddr, u16) => |pair| Target::Address(pair.into()),
    ([u8; 4], u16) => |pair| Target::Address(pair.into()),
    ([u16; 8], u16) => |pair| Target::Address(pair.into()),
    (&str, u16) => |pair| match pair.0.parse::<IpAddr>() {
        Ok(ip) => Target::Address((ip, pair.1).into()),
        Err(_) => Target::Text(format!("{}:{}", pair.0, pair.1)),
    },
}

/// An address in the form of `queryServer`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RequestedAddress {
    pub(super) address: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) kind: AddressType,
    pub(super) fd: Option<i64>,
}

/// One question to the primary.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(super) requested: RequestedAddress,
    pub(super) index: u32,
    pub(super) flags: Option<u32>,
    pub(super) backlog: Option<u32>,
}

/// An opened listener.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) source: Source,
    /// Address and port as the primary has bound them, if it hands connections over.
    pub(crate) name: Option<SocketAddr>,
    pub(crate) path: Option<String>,
    pub(crate) registration: Option<Registration>,
    /// The socket's file, if this process made it: removed with the listener.
    pub(crate) file: Option<UnixFile>,
}

#[derive(Debug)]
pub(crate) enum Source {
    /// The primary hands connections over.
    Handed(Arc<ConnQueue>),
    /// This process accepts on the socket, which is non-blocking and listens. A primary that steers
    /// may hand over connections too.
    Socket(OwnedFd, Option<Arc<ConnQueue>>),
}

impl Opened {
    pub(crate) fn into_socket(self) -> Result<OwnedFd> {
        match self.source {
            Source::Socket(fd, _) => {
                // A UDP socket lives as long as the program keeps it; its close is not reported.
                if let Some(registration) = self.registration {
                    registration.keep();
                }
                Ok(fd)
            }
            Source::Handed(_) => Err(Error::Settings(
                "the primary answered with connections where a socket was asked for".into(),
            )),
        }
    }
}

/// Tells the primary when a listener is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    inner: Arc<Inner>,
    key: Option<Arc<str>>,
    requested: RequestedAddress,
}

impl Registration {
    /// The primary's key of the listener.
    pub(crate) fn key(&self) -> Option<Arc<str>> {
        self.key.clone()
    }

    fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.inner.release_index(&self.requested);
            self.inner.end_events_without_listeners();
            self.inner.close_server(key.as_ref().to_owned());
        }
    }
}

pub(super) async fn open(inner: &Arc<Inner>, listen: &Listen) -> Result<Opened> {
    let mut result =
        Err(Error::Address { address: listen.text(), reason: "there is nothing to try".into() });
    for wanted in listen.requests()? {
        result = if inner.id.is_none() || listen.exclusive {
            alone(&wanted).map_err(|source| Error::Listen { address: listen.text(), source })
        } else {
            shared(inner, wanted, listen).await
        };
        if result.is_ok() {
            inner.span.listening(&listen.text());
            break;
        }
    }
    result
}

fn alone(wanted: &Wanted) -> io::Result<Opened> {
    let RequestedAddress { address, port, kind, fd } = &wanted.requested;
    let flags = wanted.flags.unwrap_or(0);
    let ip = || {
        address
            .as_deref()
            .map(|a| a.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput)))
            .transpose()
    };
    let port = u16::try_from(port.unwrap_or(0)).unwrap_or(0);
    let mut file = None;
    let socket = match (kind, fd) {
        (_, Some(fd)) if *fd >= 0 => {
            let fd = troop_sys::inherited::claim(i32::try_from(*fd).unwrap_or(-1))?;
            socket::set_nonblocking(&fd, true)?;
            fd
        }
        (AddressType::Unix, _) => {
            let (fd, bound) =
                unix(address.as_deref().unwrap_or_default(), false, false, &Rights::own())?;
            file = bound;
            fd
        }
        (AddressType::Udp4 | AddressType::Udp6, _) => sys::udp(
            ip()?.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            port,
            flags & 1 != 0,
            flags & 4 != 0,
        )?,
        _ => sys::tcp(ip()?, port, flags & 1 != 0)?,
    };
    if let Some(backlog) = wanted.backlog {
        socket::listen(&socket, backlog)?;
    }
    let name = socket::local_address(&socket);
    let path = (*kind == AddressType::Unix).then(|| address.clone()).flatten();
    Ok(Opened { source: Source::Socket(socket, None), name, path, registration: None, file })
}

async fn shared(inner: &Arc<Inner>, mut wanted: Wanted, listen: &Listen) -> Result<Opened> {
    wanted.index = inner.next_index(&wanted.requested);
    let mut registration =
        Registration { inner: inner.clone(), key: None, requested: wanted.requested.clone() };
    let refused = |source| Error::Listen { address: listen.text(), source };
    let answer = ask(inner, &wanted).await;
    if answer.is_err() && *inner.draining().borrow() {
        inner.release_index(&wanted.requested);
        return Ok(closed(&wanted));
    }
    let Reply { errno, key, name, grant } =
        answer.inspect_err(|_| inner.release_index(&wanted.requested))?;
    let Some(grant) = grant.filter(|_| errno == 0) else {
        inner.release_index(&wanted.requested);
        return Err(refused(io::Error::from_raw_os_error(if errno == 0 {
            rustix::io::Errno::IO.raw_os_error()
        } else {
            errno
        })));
    };
    registration.key = Some(key.into());
    let mut name =
        name.and_then(|(address, port)| Some(SocketAddr::new(address.parse().ok()?, port)));
    let source = match grant {
        Grant::Handed(queue) => Source::Handed(queue),
        Grant::Shared(fd, queue) => {
            // Node's primary may notice late that a port is taken, and then passes a socket that is
            // not bound to it.
            let bound = socket::local_address(&fd).map(|a| i64::from(a.port()));
            if wanted
                .requested
                .port
                .is_some_and(|port| port > 0 && bound.is_some_and(|bound| bound != port))
            {
                return Err(refused(rustix::io::Errno::ADDRINUSE.into()));
            }
            socket::set_nonblocking(&fd, true).map_err(refused)?;
            if let Some(backlog) = wanted.backlog {
                // The socket is only bound; the backlog of the first worker that listens counts.
                socket::listen(&fd, backlog).map_err(refused)?;
            }
            name = socket::local_address(&fd);
            Source::Socket(fd, Some(queue))
        }
    };
    let mut told = wanted;
    if let Some(name) = name.filter(|_| told.requested.kind != AddressType::Unix) {
        told.requested.port = Some(i64::from(name.port()));
    }
    let path = (told.requested.kind == AddressType::Unix)
        .then(|| told.requested.address.clone())
        .flatten();
    inner.ask(Ask::Listening(Box::new(told)))?;
    Ok(Opened { source, name, path, registration: Some(registration), file: None })
}

/// Returns a listener without connections, for a worker that is asked to finish before it listens,
/// so that it ends as it would later.
fn closed(wanted: &Wanted) -> Opened {
    let queue = ConnQueue::default();
    drop(queue.close());
    let ip = wanted
        .requested
        .address
        .as_deref()
        .and_then(|a| a.parse().ok())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let port = wanted.requested.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
    let path = (wanted.requested.kind == AddressType::Unix)
        .then(|| wanted.requested.address.clone())
        .flatten();
    Opened {
        source: Source::Handed(Arc::new(queue)),
        name: Some((ip, port).into()),
        path,
        registration: None,
        file: None,
    }
}

async fn ask(inner: &Arc<Inner>, wanted: &Wanted) -> Result<Reply> {
    let (done, reply) = oneshot::channel();
    inner.ask(Ask::Listen(Box::new(wanted.clone()), done))?;
    let mut draining = inner.draining();
    tokio::select! {
        biased;
        reply = tokio::time::timeout(REPLY_TIMEOUT, reply) => match reply {
            Ok(reply) => reply.map_err(|_| Error::Closed),
            Err(_) => Err(Error::TimedOut(REPLY_TIMEOUT)),
        },
        // A primary that has asked its worker to disconnect does not answer.
        _ = draining.wait_for(|draining| *draining) => Err(Error::Closed),
    }
}
