//! Sockets that a program finds open when it starts: `sd_listen_fds(3)`.

use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use troop_sys::listen::UnixPath;
use troop_sys::{listen, socket};

use crate::error::{Error, Result};
use crate::inherited::InheritedSocket;

/// As many connections may wait for the workers as the system allows.
const BACKLOG: u32 = 4096;

/// A listening socket for programs that take sockets by activation, as systemd gives them: see
/// [`Builder::activation`](crate::Builder::activation).
///
/// It stays with the primary, so that nothing that waits in it is lost when workers come and go. As systemd's it is blocking; a program that
/// wants something else changes that for all workers, which run the same program.
#[derive(Debug)]
pub struct ActivationSocket {
    pub(crate) name: String,
    pub(crate) socket: OwnedFd,
    address: String,
    /// Removed at the end.
    _file: Option<UnixPath>,
}

impl ActivationSocket {
    /// Binds one: `8000` (both families), `127.0.0.1:8000`, `localhost:8000`, `udp:53`, `/run/app.sock` or `unix:app.sock`. Before it there
    /// may be a name that the program knows it by (`web=8000`), for `LISTEN_FDNAMES`.
    ///
    /// # Errors
    /// [`Error::Settings`] if that is no address, [`Error::Io`] if it cannot be bound.
    pub fn bind(text: &str) -> Result<ActivationSocket> {
        let (name, place) = match text.split_once('=') {
            Some((name, place)) if is_name(name) => (name, place),
            Some((name, _)) if !name.contains('/') => {
                return Err(Error::Settings(format!(
                    "{name:?} cannot be a socket's name: letters, digits, `-` and `_` can be in it"
                )));
            }
            _ => ("unknown", text),
        };
        let bound = |e: io::Error| Error::Settings(format!("cannot listen on {place}: {e}"));
        let (socket, file) = bind(place).map_err(bound)?;
        socket::set_nonblocking(&socket, false).map_err(bound)?;
        let address = match (&file, socket::local_address(&socket)) {
            (None, Some(address)) => address.to_string(),
            _ => place.trim_start_matches("unix:").to_owned(),
        };
        Ok(ActivationSocket { name: name.to_owned(), socket, address, _file: file })
    }

    /// One that was open when this process started, under its name, or under another one.
    ///
    /// # Errors
    /// [`Error::Io`] when out of descriptors.
    pub fn inherited(socket: &InheritedSocket, name: Option<&str>) -> Result<ActivationSocket> {
        let copy = socket.socket.try_clone().map_err(Error::io("copy a socket"))?;
        socket::set_nonblocking(&copy, false).map_err(Error::io("use a socket"))?;
        let name = name.unwrap_or_else(|| socket.name()).to_owned();
        Ok(ActivationSocket { name, socket: copy, address: socket.address(), _file: None })
    }

    /// What it is bound to, such as `127.0.0.1:8000`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connections that wait in it.
    pub(crate) fn waiting(&self) -> usize {
        socket::accept_queue(self.socket.as_fd()).map_or(0, |n| n as usize)
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

fn bind(place: &str) -> io::Result<(OwnedFd, Option<UnixPath>)> {
    let path = place.strip_prefix("unix:").or_else(|| place.contains('/').then_some(place));
    if let Some(path) = path {
        let (socket, file) = listen::unix(path, false, false)?;
        socket::listen(&socket, BACKLOG)?;
        return Ok((socket, file));
    }
    let (udp, place) = place.strip_prefix("udp:").map_or((false, place), |rest| (true, rest));
    let (ip, port): (Option<IpAddr>, u16) = match place.parse() {
        Ok(port) => (None, port),
        Err(_) => {
            let address = place.to_socket_addrs()?.next();
            let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such address"))?;
            (Some(address.ip()), address.port())
        }
    };
    if udp {
        let ip = ip.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED.into());
        return Ok((listen::udp(ip, port, false, false)?, None));
    }
    let socket = listen::tcp(ip, port, false)?;
    socket::listen(&socket, BACKLOG)?;
    Ok((socket, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_bound_and_named() {
        let socket = ActivationSocket::bind("web=127.0.0.1:0").unwrap();
        assert_eq!(socket.name, "web");
        assert!(socket.address().starts_with("127.0.0.1:") && !socket.address().ends_with(":0"), "{socket}");
        let again = ActivationSocket::bind(socket.address()).unwrap_err().chain();
        assert!(again.contains("cannot listen on 127.0.0.1:") && again.contains("in use"), "{again}");
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
