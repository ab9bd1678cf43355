//! Sockets that were open when this process started, usually opened by systemd or another service
//! manager: `sd_listen_fds(3)`.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use troop_core::event::{Address, AddressType};
use troop_core::primary::{Bind, Offered};
use troop_sys::inherited::{self, FIRST_ANNOUNCED as FIRST, MAX_ANNOUNCED as MOST};
use troop_sys::options::Options;
use troop_sys::socket::{self, Kind};

use crate::error::{Error, Result};

fn cannot_offer(number: i32, why: impl std::fmt::Display) -> Error {
    Error::Settings(format!("descriptor {number} cannot be offered to workers: {why}"))
}

/// A listening, or bound, socket of this process that workers may have: where they ask for the same
/// address, and by its number (`server.listen({ fd: 3 })`, [`Listen::fd`](crate::net::Listen::fd)). No
/// other descriptor of this process can be asked for.
#[derive(Debug, Clone)]
pub struct InheritedSocket {
    name: String,
    number: i32,
    pub(crate) socket: Arc<OwnedFd>,
    /// Its options before a worker got a copy.
    pub(crate) options: Arc<Options>,
}

impl InheritedSocket {
    /// Returns all sockets that were passed to this process by activation: `LISTEN_PID` is its own
    /// number, or absent. Can be called again.
    ///
    /// # Errors
    /// [`Error::Settings`] if `LISTEN_FDS` makes no sense, or there is no socket where one should
    /// be.
    pub fn all() -> Result<Vec<InheritedSocket>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(count) = variable("LISTEN_FDS") else { return Ok(Vec::new()) };
        if variable("LISTEN_PID").is_some_and(|pid| pid.parse() != Ok(std::process::id())) {
            // The variables belong to another process.
            return Ok(Vec::new());
        }
        let wrong = |why: String| Error::Settings(format!("LISTEN_FDS={count}: {why}"));
        let number: i32 = count
            .parse()
            .ok()
            .filter(|n| (0..=MOST).contains(n))
            .ok_or_else(|| wrong(format!("it must be a number from 0 to {MOST}")))?;
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut sockets = Vec::new();
        for at in FIRST..FIRST + number {
            // Programs that this process executes must not inherit the original.
            let socket =
                inherited::claim(at).map_err(|e| wrong(format!("descriptor {at}: {e}")))?;
            match socket::kind(&socket) {
                Ok(Kind::TcpListener | Kind::UnixListener | Kind::Udp { .. }) => {}
                _ => return Err(wrong(format!("descriptor {at} is no listening socket"))),
            }
            sockets.push(InheritedSocket {
                number: at,
                name: names
                    .next()
                    .filter(|name| !name.is_empty())
                    .unwrap_or_else(|| "unknown".into()),
                options: Arc::new(Options::of(&socket)),
                socket: Arc::new(socket),
            });
        }
        Ok(sockets)
    }

    /// Takes a socket that this process was started with, by its number. A copy is kept, so that
    /// the number means this socket even if it is closed and used again.
    ///
    /// # Errors
    /// [`Error::Settings`] if there is no such descriptor, if it is neither a listening nor a bound
    /// socket, if it is a standard stream, or if this program has opened it itself (close-on-exec),
    /// which is what [`of`](InheritedSocket::of) is for.
    pub fn at(number: std::os::fd::RawFd) -> Result<InheritedSocket> {
        if number < FIRST {
            return Err(cannot_offer(number, "0, 1 and 2 are the standard streams"));
        }
        let socket = inherited::claim(number).map_err(|e| cannot_offer(number, e))?;
        InheritedSocket::with(number, socket)
    }

    /// Takes a socket that this program has opened itself. Workers ask for it by the number that it
    /// has here, which means this socket from now on, even if it is closed and used again.
    ///
    /// # Errors
    /// [`Error::Settings`] if it is neither a listening nor a bound socket, if it is a standard
    /// stream, or if there is no descriptor left for the copy.
    pub fn of(socket: impl AsFd) -> Result<InheritedSocket> {
        let number = socket.as_fd().as_raw_fd();
        if number < FIRST {
            return Err(cannot_offer(number, "0, 1 and 2 are the standard streams"));
        }
        let copy = socket.as_fd().try_clone_to_owned().map_err(|e| cannot_offer(number, e))?;
        InheritedSocket::with(number, copy)
    }

    fn with(number: i32, socket: OwnedFd) -> Result<InheritedSocket> {
        let is_bound = match socket::kind(&socket) {
            Ok(Kind::TcpListener | Kind::Udp { .. }) => {
                socket::local_address(&socket).is_some_and(|at| at.port() != 0)
            }
            Ok(Kind::UnixListener) => socket::is_named(&socket),
            _ => false,
        };
        if !is_bound {
            return Err(cannot_offer(number, "it is neither a listening nor a bound socket"));
        }
        Ok(InheritedSocket {
            name: "unknown".into(),
            number,
            options: Arc::new(Options::of(&socket)),
            socket: Arc::new(socket),
        })
    }

    /// Returns a socket that another primary had offered.
    pub(crate) fn restore(
        name: String,
        number: i32,
        socket: OwnedFd,
        options: Options,
    ) -> InheritedSocket {
        InheritedSocket { name, number, socket: Arc::new(socket), options: Arc::new(options) }
    }

    /// Returns the number by which workers can ask for the socket.
    #[must_use]
    pub fn number(&self) -> std::os::fd::RawFd {
        self.number
    }

    /// Returns its description for the core.
    pub(crate) fn offered(&self) -> Offered {
        let at =
            match (socket::kind(self.socket.as_fd()), socket::local_address(self.socket.as_fd())) {
                (Ok(kind), Some(at)) => Some(Address {
                    address: Some(at.ip().to_canonical().to_string()),
                    port: Some(at.port().into()),
                    address_type: match (kind, at.is_ipv4()) {
                        (Kind::Udp { .. }, true) => AddressType::Udp4,
                        (Kind::Udp { .. }, false) => AddressType::Udp6,
                        (_, true) => AddressType::Tcp4,
                        (_, false) => AddressType::Tcp6,
                    },
                    fd: None,
                }),
                _ => socket::local_path(self.socket.as_fd())
                    .and_then(|path| path.into_os_string().into_string().ok())
                    .map(|path| Address {
                        address: Some(path),
                        port: Some(-1),
                        address_type: AddressType::Unix,
                        fd: None,
                    }),
            };
        Offered { number: self.number, at }
    }

    /// Returns the socket's name (`LISTEN_FDNAMES`); `unknown` if it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the address that the socket is bound to.
    #[must_use]
    pub fn address(&self) -> String {
        match (socket::local_path(self.socket.as_fd()), socket::local_address(self.socket.as_fd()))
        {
            (Some(path), _) => path.display().to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "?".into(),
        }
    }

    /// Leaves the socket, under its number, to the program that this process is about to become by
    /// `exec`.
    pub fn leave(&self) {
        let _ = inherited::leave_to_exec(self.number);
    }

    /// Leaves all of them to the program that this process is about to become by `exec`.
    pub fn leave_all() {
        let count =
            std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        for at in FIRST..FIRST + i32::clamp(count, 0, MOST) {
            if inherited::claim(at).is_ok() {
                let _ = inherited::leave_to_exec(at);
            }
        }
    }

    /// Whether it is the socket that a worker asks for.
    pub(crate) fn fits(&self, target: &Bind) -> bool {
        let kind = socket::kind(self.socket.as_fd()).ok();
        let bound = socket::local_address(self.socket.as_fd());
        let is_at = |address: Option<&str>, port: u16| {
            bound.is_some_and(|bound| {
                let same = address.map_or(bound.ip().is_unspecified(), |address| {
                    address.parse() == Ok(bound.ip())
                });
                bound.port() == port && same
            })
        };
        match target {
            Bind::Tcp { address, port, .. } => {
                kind == Some(Kind::TcpListener) && is_at(address.as_deref(), *port)
            }
            Bind::Udp { address, port, .. } => {
                matches!(kind, Some(Kind::Udp { .. })) && is_at(address.as_deref(), *port)
            }
            Bind::Unix { path, .. } => {
                kind == Some(Kind::UnixListener)
                    && socket::local_path(self.socket.as_fd())
                        .is_some_and(|own| own.to_str() == Some(path.as_str()))
            }
            Bind::Fd { fd, udp } => {
                self.number == *fd && *udp == matches!(kind, Some(Kind::Udp { .. }))
            }
        }
    }
}
