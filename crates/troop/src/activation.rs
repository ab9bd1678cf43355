//! Sockets that a program finds open when it starts: `sd_listen_fds(3)`.
//!
//! An [`ActivationSocket`] is for workers that take their sockets that way and know nothing of
//! Node's protocol; an [`InheritedSocket`] is one that this process was given itself, by systemd
//! for example, and that its workers may have.
//!
//! ```no_run
//! use troop::activation::ActivationSocket;
//! use troop::{Cluster, Setup};
//!
//! # fn main() -> troop::Result<()> {
//! let socket = ActivationSocket::bind("127.0.0.1:8000")?;
//! Cluster::builder().activation([socket]).setup(Setup::new().program("uvicorn")).run()
//! # }
//! ```

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use troop_core::event::{Address, AddressType};
use troop_sys::options::Options;
use troop_sys::unix::{Rights, UnixFile, unix};
use troop_sys::{group, listen, socket};

use self::slots::Slots;
use self::upkeep::Upkeep;
use crate::error::{Error, Result};
pub use crate::inherited::InheritedSocket;

mod save;
mod slots;
mod upkeep;

pub(crate) use self::save::SavedActivation;
pub(crate) use self::upkeep::{Revival, Revived};

/// Length of the accept queue: the system's maximum.
const BACKLOG: u32 = 4096;

/// A listening socket for programs that take sockets by activation, as systemd gives them: see
/// [`Builder::activation`](crate::Builder::activation).
///
/// It stays with the primary, so that waiting connections are not lost when workers start and end.
/// As systemd's it is blocking; a program that wants something else changes that for all workers,
/// which run the same program.
#[derive(Debug)]
pub struct ActivationSocket {
    pub(crate) name: String,
    /// Removed at the end, before its socket is closed and the number of the file may be another
    /// one's.
    file: Mutex<Option<UnixFile>>,
    pub(crate) socket: OwnedFd,
    /// Its options before workers had it.
    options: Options,
    address: String,
    /// Sockets for each slot; `None` if all share one.
    slots: Option<Slots>,
    /// Whether it was open when this process started.
    is_inherited: bool,
    upkeep: Mutex<Upkeep>,
}

impl ActivationSocket {
    /// Binds a socket: `8000` (both families), `127.0.0.1:8000`, `localhost:8000`, `udp:53`,
    /// `/run/app.sock` or `unix:app.sock`. Before it there may be a name that the program knows it
    /// by (`web=8000`), for `LISTEN_FDNAMES`.
    ///
    /// # Errors
    /// [`Error::Settings`] if that is no address, [`Error::Io`] if it cannot be bound.
    pub fn bind(text: &str) -> Result<ActivationSocket> {
        ActivationSocket::bind_as(text, 0)
    }

    /// Binds a TCP address with a separate socket for each of this many workers (and for further
    /// ones). The kernel chooses among them evenly, or by
    /// [`Builder::weights`](crate::Builder::weights); the socket of a missing worker, or of one
    /// that is not ready while others are, gets no connections. A worker's successor gets its
    /// socket, with the connections that wait in it.
    ///
    /// # Errors
    /// As [`ActivationSocket::bind`]; [`Error::Settings`] if it is no TCP socket.
    pub fn bind_steered(text: &str, workers: usize) -> Result<ActivationSocket> {
        ActivationSocket::bind_as(text, workers.max(1))
    }

    /// Checks that a text has the form that [`ActivationSocket::bind`] takes. Binds nothing and
    /// looks up no host.
    ///
    /// # Errors
    /// [`Error::Settings`] if not.
    pub fn check(text: &str) -> Result<()> {
        let (_, place) = parts(text)?;
        if place.starts_with("unix:") || place.contains('/') {
            return Ok(());
        }
        let place = place.strip_prefix("udp:").unwrap_or(place);
        let is_host = |host: &str| {
            !host.is_empty()
                && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
        };
        let at_host = place
            .rsplit_once(':')
            .is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok());
        if at_host || place.parse::<u16>().is_ok() {
            return Ok(());
        }
        let port = place.rsplit_once(':').map_or(place, |(_, port)| port);
        let reason = if place.starts_with('@') {
            "abstract sockets cannot be bound"
        } else if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
            if port.parse::<u16>().is_err() {
                "a port is a number from 0 to 65535"
            } else {
                "an IPv6 address stands in brackets"
            }
        } else if place.contains(':') {
            "what follows the last colon must be a port"
        } else {
            "it has no port"
        };
        Err(Error::Settings(format!(
            "cannot listen on {text:?}: {reason}; write 8000, 127.0.0.1:8000, [::1]:8000, udp:53, or a path such as /run/app.sock"
        )))
    }

    fn bind_as(text: &str, slots: usize) -> Result<ActivationSocket> {
        let (name, place) = parts(text)?;
        let bound = |e: io::Error| Error::Settings(format!("cannot listen on {place}: {e}"));
        let (socket, file) = bind(place, slots == 0).map_err(bound)?;
        let mut own = None;
        if slots > 0 {
            let is_tcp = matches!(socket::kind(&socket), Ok(socket::Kind::TcpListener));
            if !is_tcp {
                return Err(Error::Settings(format!("{place} cannot be steered: only TCP can")));
            }
            own = Some(Slots::open(&socket, slots).map_err(bound)?);
        }
        socket::set_nonblocking(&socket, false).map_err(bound)?;
        let address = match (&file, socket::local_address(&socket)) {
            (None, Some(address)) => address.to_string(),
            _ => place.trim_start_matches("unix:").to_owned(),
        };
        if slots == 0 {
            // No worker can attach a filter. (Those of Unix sockets have no effect.)
            let _ = group::lock(socket.as_fd());
        }
        let options = Options::of(&socket);
        let (file, upkeep) = (Mutex::new(file), Mutex::default());
        Ok(ActivationSocket {
            name: name.to_owned(),
            socket,
            options,
            address,
            slots: own,
            is_inherited: false,
            upkeep,
            file,
        })
    }

    /// Gives the file of a socket at a path to a user and a group, and sets its mode. Clients need the
    /// right to write. What is left out stays: the file belongs to the user of this process, whose umask
    /// decides on the mode. Other sockets have no file, and nothing is done for them.
    ///
    /// # Errors
    /// [`Error::Settings`] if this process may not do that.
    pub fn access(
        self,
        uid: Option<u32>,
        gid: Option<u32>,
        mode: Option<u32>,
    ) -> Result<ActivationSocket> {
        let set = |file: &UnixFile| file.set_access(&self.socket, uid, gid, mode);
        let file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_set = file.as_ref().map_or(Ok(()), set);
        drop(file);
        is_set.map_err(|e| {
            Error::Settings(format!("cannot set the owner and mode of {}: {e}", self.address))
        })?;
        Ok(self)
    }

    /// Takes a socket that was open when this process started, under its name or under another one.
    ///
    /// # Errors
    /// [`Error::Io`] when out of descriptors.
    pub fn inherited(socket: &InheritedSocket, name: Option<&str>) -> Result<ActivationSocket> {
        let copy = socket.socket.try_clone().map_err(Error::io("copy a socket"))?;
        socket::set_nonblocking(&copy, false).map_err(Error::io("use a socket"))?;
        let name = name.unwrap_or_else(|| socket.name()).to_owned();
        Ok(ActivationSocket {
            name,
            socket: copy,
            options: socket.options.as_ref().clone(),
            address: socket.address(),
            slots: None,
            is_inherited: true,
            upkeep: Mutex::default(),
            file: Mutex::new(None),
        })
    }

    /// Returns its address, for events.
    pub(crate) fn place(&self) -> Address {
        let bound = socket::local_address(&self.socket);
        let address_type = match bound {
            None => AddressType::Unix,
            Some(at) if self.is_udp() && at.is_ipv4() => AddressType::Udp4,
            Some(_) if self.is_udp() => AddressType::Udp6,
            Some(at) if at.is_ipv4() => AddressType::Tcp4,
            Some(_) => AddressType::Tcp6,
        };
        Address {
            address: Some(bound.map_or_else(|| self.address.clone(), |at| at.ip().to_string())),
            port: Some(bound.map_or(-1, |at| at.port().into())),
            address_type,
            fd: None,
        }
    }

    /// Returns the address that the socket is bound to, such as `127.0.0.1:8000`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the number of connections that wait in it.
    pub(crate) fn waiting(&self) -> usize {
        let in_queue =
            |socket: BorrowedFd<'_>| socket::accept_queue(socket).map_or(0, |n| n as usize);
        match &self.slots {
            None => in_queue(self.socket.as_fd()),
            Some(slots) => slots.lock().iter().map(|own| in_queue(own.fd.as_fd())).sum(),
        }
    }

    /// Whether a connection or a datagram waits in it.
    pub(crate) fn is_awaited(&self) -> bool {
        match &self.slots {
            None => socket::is_readable(self.socket.as_fd()),
            Some(slots) => slots.lock().iter().any(|own| socket::is_readable(own.fd.as_fd())),
        }
    }

    /// Shuts a socket of this process's own down at the end, so that its clients are refused even if
    /// some process has a copy of it.
    pub(crate) fn shut_down(&self) {
        if self.is_inherited {
            return;
        }
        if let Some(slots) = &self.slots {
            slots.shut_down();
        }
        socket::shut_listener_down(self.socket.as_fd());
    }

    pub(crate) fn is_unix(&self) -> bool {
        socket::is_unix(&self.socket)
    }

    pub(crate) fn is_udp(&self) -> bool {
        matches!(socket::kind(&self.socket), Ok(socket::Kind::Udp { .. }))
    }

    pub(crate) fn is_steered(&self) -> bool {
        self.slots.is_some()
    }

    /// Returns the number of slots with a separate socket.
    pub(crate) fn slots(&self) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.lock().len())
    }

    /// Returns the socket of a slot. Opens those of the slots before it too, so that each has the
    /// number of its slot.
    pub(crate) fn of_slot(&self, slot: u32) -> io::Result<Arc<OwnedFd>> {
        match &self.slots {
            Some(slots) => slots.of(&self.socket, slot as usize),
            None => Ok(Arc::new(self.socket.try_clone()?)),
        }
    }

    /// Makes the kernel choose among the slots' sockets in proportion to their shares.
    pub(crate) fn steer(&self, shares: &[u32]) -> Result<()> {
        let Some(slots) = &self.slots else { return Ok(()) };
        slots
            .steer(&self.socket, shares)
            .map_err(Error::io("tell the kernel how to choose among sockets"))
    }
}

impl AsFd for ActivationSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Display for ActivationSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

/// The name and the address of a socket.
fn parts(text: &str) -> Result<(&str, &str)> {
    match text.split_once('=') {
        Some((name, place)) if is_name(name) => Ok((name, place)),
        Some((name, _)) if !name.contains('/') => Err(Error::Settings(format!(
            "{name:?} cannot be a socket's name: letters, digits, `-` and `_` can be in it"
        ))),
        _ => Ok(("unknown", text)),
    }
}

fn bind(place: &str, listens: bool) -> io::Result<(OwnedFd, Option<UnixFile>)> {
    let path = place.strip_prefix("unix:").or_else(|| place.contains('/').then_some(place));
    if let Some(path) = path {
        let (socket, file) = unix(path, false, false, &Rights::own())?;
        socket::listen(&socket, BACKLOG)?;
        return Ok((socket, file));
    }
    let (udp, place) = place.strip_prefix("udp:").map_or((false, place), |rest| (true, rest));
    let (ip, port): (Option<IpAddr>, u16) = match place.parse() {
        Ok(port) => (None, port),
        Err(_) => {
            let address = place.to_socket_addrs()?.next();
            let address = address.ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "there is no such address")
            })?;
            (Some(address.ip()), address.port())
        }
    };
    if udp {
        let ip = ip.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED.into());
        return Ok((listen::udp(ip, port, false, false)?, None));
    }
    let socket = listen::tcp(ip, port, false)?;
    if listens {
        socket::listen(&socket, BACKLOG)?;
    }
    Ok((socket, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_bound_and_named() {
        let socket = ActivationSocket::bind("web=127.0.0.1:0").unwrap();
        assert_eq!(socket.name, "web");
        assert!(
            socket.address().starts_with("127.0.0.1:") && !socket.address().ends_with(":0"),
            "{socket}"
        );
        for good in
            ["8000", "web=127.0.0.1:0", "[::1]:80", "localhost:80", "udp:53", "/run/x", "a=unix:x"]
        {
            assert!(ActivationSocket::check(good).is_ok(), "{good}");
        }
        for bad in ["", "80000", "x:y:z", "::1:80", ":80", "a b=80", "host"] {
            assert!(ActivationSocket::check(bad).is_err(), "{bad}");
        }
        let again = ActivationSocket::bind(socket.address()).unwrap_err().chain();
        assert!(
            again.contains("cannot listen on 127.0.0.1:") && again.contains("in use"),
            "{again}"
        );
        assert!(ActivationSocket::bind("udp:127.0.0.1:0").is_ok());
        for bad in ["somewhere", "1.2.3.4", "a b=8000", "70000"] {
            assert!(ActivationSocket::bind(bad).is_err(), "{bad}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s").display().to_string();
        let socket = ActivationSocket::bind(&path).unwrap();
        assert_eq!(socket.address(), path);
        drop(socket);
        assert!(!std::path::Path::new(&path).exists());
    }
}
