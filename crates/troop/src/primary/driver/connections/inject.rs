//! Gives a certain worker a connection of the cluster's own, to see what it does with it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tokio::sync::oneshot;
use troop_core::event::AddressType;
use troop_core::policy::Pattern;
use troop_core::{ConnId, WorkerId};
use troop_sys::socket;

use crate::primary::driver::Driver;

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
struct PendingInjection {
    worker: WorkerId,
    /// Told whether the worker has taken it.
    known: oneshot::Sender<bool>,
}

/// Connections of the program's own that were sent to workers and are not acknowledged yet.
#[derive(Default)]
pub(super) struct Injections {
    pending: BTreeMap<ConnId, PendingInjection>,
}

impl Injections {
    /// The worker has taken it, or not.
    pub(super) fn settle(&mut self, conn: ConnId, taken: bool) {
        if let Some(given) = self.pending.remove(&conn) {
            let _ = given.known.send(taken);
        }
    }
}

impl Driver {
    /// Hands a worker a connection to nothing. It is a socket of its own, so that no two workers
    /// have one in common.
    pub(in crate::primary::driver) fn send_probe(&mut self, worker: WorkerId, line: &[u8]) {
        // The answer must not have to wait for the program.
        self.channels.reclaim(worker, self.now, &mut self.poller);
        match UnixStream::pair() {
            Ok((socket, _)) => self.channels.send_with(worker, line, socket.into()),
            Err(_) if self.channels.get(worker).is_some() => {
                self.cluster.primary.probe_unsent(self.now, worker);
            }
            Err(_) => {}
        }
    }

    /// As if it had come from a listener that fits, or from the first one.
    pub(in crate::primary::driver) fn inject(
        &mut self,
        worker: WorkerId,
        pattern: Option<&Pattern>,
        ends: ConnectionEnds,
    ) -> Result<Injected, String> {
        if self.connections.injections.pending.values().any(|given| given.worker == worker) {
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
        let conn = self.connections.add(fd, unix);
        let (known, taken) = oneshot::channel();
        self.connections.injections.pending.insert(conn, PendingInjection { worker, known });
        if !self.cluster.primary.inject(self.now, worker, listener, conn) {
            self.connections.release(self.now, conn, false, &mut self.closing);
            return Err(
                "it takes nothing at the moment: its channel is full, or it is leaving".into()
            );
        }
        Ok(Injected { unix, taken })
    }
}
