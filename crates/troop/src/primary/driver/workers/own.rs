//! Where workers listen by themselves: what the thread of [`super::accepted`] inspects, too.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use troop_core::WorkerId;
use troop_core::event::{Address, AddressType};
use troop_core::supervise::{MAX_OWN_ADDRESSES, OwnAddress, OwnInspection, Seen, WorkerSeen};
use troop_sys::{connections, diag};

use crate::primary::driver::Driver;

/// Maximum time of an inspection.
const MAX_TIME: Duration = Duration::from_secs(3);

impl Driver {
    /// Handles the result of an inspection. It needs the last words of these workers.
    pub(in crate::primary::driver) fn listeners_inspected(
        &mut self,
        mut inspection: OwnInspection,
        words_of: &[WorkerId],
    ) {
        for seen in inspection.workers.iter_mut().filter(|seen| words_of.contains(&seen.worker)) {
            let worker = self.workers.handle(seen.worker);
            seen.words = worker.and_then(|worker| worker.last_stderr(Duration::ZERO));
        }
        if let Some(supervisor) = self.cluster.supervisor_mut() {
            supervisor.listeners_inspected(self.now, &inspection);
        }
    }
}

/// Inspects these workers and their processes.
pub(super) fn inspect(workers: &[(WorkerId, u32)]) -> OwnInspection {
    let until = Instant::now() + MAX_TIME;
    let listening = listening(until);
    let see = |(worker, pid): &(WorkerId, u32)| {
        let opened = connections::opened(*pid, until);
        let seen = match (opened.is_complete, opened.is_hidden) {
            (_, true) => Seen::Hidden,
            (false, false) => Seen::Unfinished,
            (true, false) => {
                let found = opened.sockets.iter().filter_map(|inode| listening.get(inode));
                let found: Vec<_> = found.take(MAX_OWN_ADDRESSES + 1).cloned().collect();
                if found.len() > MAX_OWN_ADDRESSES { Seen::Hidden } else { Seen::Listens(found) }
            }
        };
        WorkerSeen { worker: *worker, seen, words: None }
    };
    OwnInspection { workers: workers.iter().map(see).collect(), took: Duration::ZERO }
}

/// An inspection that shows nothing.
pub(super) fn nothing_seen(workers: &[(WorkerId, u32)]) -> OwnInspection {
    let hidden = |(worker, _): &(WorkerId, u32)| WorkerSeen {
        worker: *worker,
        seen: Seen::Hidden,
        words: None,
    };
    OwnInspection { workers: workers.iter().map(hidden).collect(), took: Duration::ZERO }
}

/// Returns the listening sockets of the system that this process does not have, by their inodes. Those
/// of UDP count if they have a port that was not chosen by the kernel: clients have such ports, too.
fn listening(until: Instant) -> BTreeMap<u64, OwnAddress> {
    let own = connections::opened_by(std::process::id(), until);
    let chosen = diag::chosen_ports();
    let mut found = BTreeMap::new();
    for is_udp in [false, true] {
        for bound in diag::bound(None, is_udp).unwrap_or_default() {
            let may_be_chosen = chosen.contains(&bound.port);
            let is_served = bound.port != 0 && !(is_udp && may_be_chosen);
            if is_served && !own.contains(&bound.inode) {
                let at = address(SocketAddr::new(bound.address.to_canonical(), bound.port), is_udp);
                found.insert(bound.inode, OwnAddress { at, may_be_chosen });
            }
        }
    }
    for (inode, path) in connections::unix_listeners().unwrap_or_default() {
        if !own.contains(&inode) {
            let at = Address {
                address: Some(path.to_string_lossy().into_owned()),
                port: Some(-1),
                address_type: AddressType::Unix,
                fd: None,
            };
            found.insert(inode, OwnAddress { at, may_be_chosen: true });
        }
    }
    found
}

fn address(at: SocketAddr, is_udp: bool) -> Address {
    let address_type = match (at.ip(), is_udp) {
        (IpAddr::V4(_), false) => AddressType::Tcp4,
        (IpAddr::V6(_), false) => AddressType::Tcp6,
        (IpAddr::V4(_), true) => AddressType::Udp4,
        (IpAddr::V6(_), true) => AddressType::Udp6,
    };
    Address {
        address: Some(at.ip().to_string()),
        port: Some(at.port().into()),
        address_type,
        fd: None,
    }
}
