//! Where workers listen by themselves: what the thread of [`super::accepted`] inspects, too.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use troop_core::WorkerId;
use troop_core::event::{Address, AddressType};
use troop_core::supervise::{MAX_OWN_ADDRESSES, OwnAddress, OwnInspection, Seen, WorkerSeen};
use troop_sys::connections::{self, Opened};
use troop_sys::diag;

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
    let opened = workers.iter().map(|(_, pid)| connections::opened(*pid, until));
    let mut inspected: Vec<_> = opened.map(|opened| (opened, Vec::new())).collect();
    // Of the sockets of the system, which others can make very many, only theirs are kept.
    let pids: Vec<_> = workers.iter().map(|(_, pid)| *pid).collect();
    let is_seen = add_listening(&pids, &mut inspected, until).is_ok();
    let see = |(worker, (opened, found)): (WorkerId, (Opened, Vec<OwnAddress>))| {
        let seen = match (opened.is_complete && is_seen, opened.is_hidden) {
            (_, true) => Seen::Hidden,
            (false, false) => Seen::Unfinished,
            (true, false) if found.len() > MAX_OWN_ADDRESSES => Seen::Hidden,
            (true, false) => Seen::Listens(found),
        };
        WorkerSeen { worker, seen, words: None }
    };
    let workers = workers.iter().map(|(worker, _)| *worker).zip(inspected);
    OwnInspection { workers: workers.map(see).collect(), took: Duration::ZERO }
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

/// Adds to each worker where it listens: with the sockets that it has open, except those that this
/// process has, too. Those of UDP count if they have a port that was not chosen by the kernel:
/// clients have such ports, too. Sockets whose path is gone count as none: no client reaches them.
///
/// # Errors
/// `TimedOut` if the system has so many sockets that they were not all seen.
fn add_listening(
    pids: &[u32],
    inspected: &mut [(Opened, Vec<OwnAddress>)],
    until: Instant,
) -> io::Result<()> {
    let own = connections::opened_by(std::process::id(), until);
    let chosen = diag::chosen_ports();
    let mut add = |inode: u64, address: &dyn Fn(u32) -> Option<OwnAddress>| {
        if own.contains(&inode) {
            return;
        }
        let theirs = pids.iter().zip(&mut *inspected).filter(|(_, (opened, found))| {
            found.len() <= MAX_OWN_ADDRESSES && opened.sockets.contains(&inode)
        });
        theirs.for_each(|(pid, (_, found))| found.extend(address(*pid)));
    };
    for is_udp in [false, true] {
        // What the kernel does not show is not seen to listen.
        let _ = diag::each_bound(None, is_udp, |bound| {
            let may_be_chosen = chosen.contains(&bound.port);
            if bound.port != 0 && !(is_udp && may_be_chosen) {
                add(bound.inode, &|_| {
                    let at = SocketAddr::new(bound.address.to_canonical(), bound.port);
                    Some(OwnAddress { at: address(at, is_udp), may_be_chosen })
                });
            }
        });
    }
    let seen = connections::each_unix_listener(until, |inode, path| {
        add(inode, &|pid| {
            if connections::is_path_gone(pid, path) {
                return None;
            }
            let at = Address {
                address: Some(path.to_string_lossy().into_owned()),
                port: Some(-1),
                address_type: AddressType::Unix,
                fd: None,
            };
            Some(OwnAddress { at, may_be_chosen: true })
        });
    });
    seen.or_else(|e| if e.kind() == io::ErrorKind::TimedOut { Err(e) } else { Ok(()) })
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
