//! Gives a certain worker a connection of the cluster's own, to see what it does with it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tokio::sync::oneshot;
use troop_core::event::AddressType;
use troop_core::policy::Pattern;
use troop_core::{ConnId, WorkerId};
use troop_sys::socket;

use super::Driver;
use super::connections::Conn;

/// Ends of connections, of which a worker gets the one that suits its listener.
#[derive(Debug)]
pub(crate) struct ConnectionEnds {
    pub(crate) tcp: OwnedFd,
    pub(crate) unix: OwnedFd,
}

/// Which of them a worker was given, and whether it has taken it.
#[derive(Debug)]
pub(crate) struct Injected {
    pub(crate) unix: bool,
    pub(crate) taken: oneshot::Receiver<bool>,
}

/// A connection that a worker was given.
pub(super) struct PendingInjection {
    worker: WorkerId,
    /// Who wants to know whether it has taken it.
    pub(super) known: oneshot::Sender<bool>,
}

impl Driver {
    /// Hands a worker a connection to nothing. It is a socket of its own, so that no two workers
    /// have one in common.
    pub(super) fn send_probe(&mut self, worker: WorkerId, line: &[u8]) {
        // The answer must not have to wait for the program.
        self.reclaim_channel(worker);
        match (UnixStream::pair(), self.channel(worker)) {
            (Ok((socket, _)), Some(channel)) => {
                channel.send_line_with(line, socket.into());
                self.unflushed.push(worker);
            }
            (Err(_), Some(_)) => self.cluster.primary.probe_unsent(self.now, worker),
            (_, None) => {}
        }
    }

    /// As if it had come from a listener that fits, or from the first one.
    pub(super) fn inject(
        &mut self,
        worker: WorkerId,
        pattern: Option<&Pattern>,
        ends: ConnectionEnds,
    ) -> Result<Injected, String> {
        if self.injected.values().any(|given| given.worker == worker) {
            return Err("it has not taken the last connection yet".into());
        }
        let fits = |address: &troop_core::event::Address| {
            !address.address_type.is_udp() && pattern.is_none_or(|pattern| pattern.matches(address))
        };
        let listens_on: Vec<_> = self.cluster.primary.listens_on(worker).collect();
        let found = listens_on.into_iter().find_map(|id| {
            let asked = self
                .cluster
                .primary
                .listener_address(id)
                .filter(fits)
                .or_else(|| self.cluster.primary.bound_address(id).filter(fits));
            asked.map(|address| (id, address.address_type))
        });
        let Some((listener, kind)) = found else { return Err("it does not listen there".into()) };
        let unix = kind == AddressType::Unix;
        let fd = if unix { ends.unix } else { ends.tcp };
        socket::set_nonblocking(&fd, true).map_err(|e| e.to_string())?;
        let key = self.conns.insert(Conn { fd, stripped: 0 });
        let conn = ConnId(u32::try_from(key).unwrap_or(u32::MAX));
        let (known, taken) = oneshot::channel();
        self.injected.insert(conn, PendingInjection { worker, known });
        if !self.cluster.primary.inject(self.now, worker, listener, conn) {
            self.injected.remove(&conn);
            self.conns.try_remove(key);
            return Err(
                "it takes nothing at the moment: its channel is full, or it is leaving".into()
            );
        }
        self.act();
        Ok(Injected { unix, taken })
    }
}
