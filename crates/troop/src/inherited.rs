//! Sockets that systemd, or somebody like it, has opened for this process: `sd_listen_fds(3)`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use troop_core::primary::Bind;
use troop_sys::socket::{self, Kind};

use crate::error::{Error, Result};

/// The number of the first one.
const FIRST: i32 = 3;
/// More than anybody gives.
const MOST: i32 = 1024;

/// A socket that was open when this process started.
#[derive(Debug, Clone)]
pub struct InheritedSocket {
    name: String,
    pub(crate) socket: Arc<OwnedFd>,
}

impl InheritedSocket {
    /// All that are meant for this process: `LISTEN_PID` is its own number, or absent. Can be called again.
    ///
    /// # Errors
    /// [`Error::Settings`] if `LISTEN_FDS` makes no sense, or there is no socket where one should be.
    pub fn all() -> Result<Vec<InheritedSocket>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(count) = variable("LISTEN_FDS") else { return Ok(Vec::new()) };
        if variable("LISTEN_PID").is_some_and(|pid| pid.parse() != Ok(std::process::id())) {
            // They are, or were, somebody else's.
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
            // Nobody else should find the original.
            let socket = socket::borrow_number(at).map_err(|e| wrong(format!("descriptor {at}: {e}")))?;
            match socket::kind(&socket) {
                Ok(Kind::TcpListener | Kind::UnixListener | Kind::Udp { .. }) => {}
                _ => return Err(wrong(format!("descriptor {at} is no listening socket"))),
            }
            sockets.push(InheritedSocket {
                name: names.next().filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into()),
                socket: Arc::new(socket),
            });
        }
        Ok(sockets)
    }

    /// What it is called, `unknown` if it has no name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is bound.
    #[must_use]
    pub fn address(&self) -> String {
        match (socket::local_path(self.socket.as_fd()), socket::local_address(self.socket.as_fd())) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "?".into(),
        }
    }

    /// Leaves all of them to the program that this process is about to become by `exec`.
    pub fn leave_all() {
        let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        for at in FIRST..FIRST + i32::clamp(count, 0, MOST) {
            let _ = socket::leave_to_exec(at);
        }
    }

    /// Whether it is what a worker asks for.
    pub(crate) fn fits(&self, place: &Bind) -> bool {
        let kind = socket::kind(self.socket.as_fd()).ok();
        let bound = socket::local_address(self.socket.as_fd());
        let is_at = |address: Option<&str>, port: u16| {
            bound.is_some_and(|bound| {
                let same = address.map_or(bound.ip().is_unspecified(), |address| address.parse() == Ok(bound.ip()));
                bound.port() == port && same
            })
        };
        match place {
            Bind::Tcp { address, port, .. } => kind == Some(Kind::TcpListener) && is_at(address.as_deref(), *port),
            Bind::Udp { address, port, .. } => matches!(kind, Some(Kind::Udp { .. })) && is_at(address.as_deref(), *port),
            Bind::Unix { path, .. } => {
                kind == Some(Kind::UnixListener)
                    && socket::local_path(self.socket.as_fd()).is_some_and(|own| own.to_str() == Some(path.as_str()))
            }
            Bind::Fd { .. } => false,
        }
    }
}
