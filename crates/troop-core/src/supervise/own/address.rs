//! The addresses on which workers listen by themselves, and how they compare.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Address, AddressType};
use crate::id::WorkerId;

/// Maximum number of addresses that are kept of a worker. One that has more counts as hidden.
pub const MAX_OWN_ADDRESSES: usize = 64;

/// An address on which a worker, or a process that it has started, listens by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnAddress {
    /// The address.
    pub at: Address,
    /// Whether its port may have been chosen by the kernel, or its path by the process, so that the
    /// successor has another one.
    pub may_be_chosen: bool,
}

impl OwnAddress {
    /// Whether clients of the other address are served at this one.
    fn covers(&self, other: &OwnAddress) -> bool {
        let (own, other) = (&self.at, &other.at);
        let is_ipv4 = matches!(other.address_type, AddressType::Tcp4 | AddressType::Udp4);
        let is_any = match own.address.as_deref() {
            Some("::") => true,
            Some("0.0.0.0") => is_ipv4,
            _ => false,
        };
        let is_path = |at: &Address| at.address_type == AddressType::Unix;
        own.address_type.is_udp() == other.address_type.is_udp()
            && is_path(own) == is_path(other)
            && own.port == other.port
            && (own.address == other.address || (is_any && !is_path(own)))
    }

    /// Whether it can stand for an address of the predecessor that was chosen anew.
    fn stands_for(&self, other: &OwnAddress) -> bool {
        let is_path = |own: &OwnAddress| own.at.address_type == AddressType::Unix;
        self.may_be_chosen
            && other.may_be_chosen
            && is_path(self) == is_path(other)
            && self.at.address_type.is_udp() == other.at.address_type.is_udp()
    }
}

/// Returns the required addresses on which a worker with these does not listen.
pub(super) fn lacking(required: &[OwnAddress], has: &[OwnAddress]) -> Vec<OwnAddress> {
    let is_new = |own: &&OwnAddress| !required.iter().any(|required| own.covers(required));
    let mut new: Vec<&OwnAddress> = has.iter().filter(is_new).collect();
    let is_lacking = |required: &&OwnAddress| {
        if has.iter().any(|own| own.covers(required)) {
            return false;
        }
        let substitute = new.iter().position(|own| own.stands_for(required));
        substitute.map(|at| new.swap_remove(at)).is_none()
    };
    required.iter().filter(is_lacking).cloned().collect()
}

/// Returns the address to tell of: one that these words name, or else one with a port.
pub(super) fn most_telling(lacking: &[OwnAddress], words: Option<&str>) -> Option<OwnAddress> {
    let is_named = |own: &&OwnAddress| words.is_some_and(|words| names(words, &own.at));
    let has_port = |own: &&OwnAddress| own.at.address_type != AddressType::Unix;
    let found = lacking.iter().find(is_named).or_else(|| lacking.iter().find(has_port));
    found.or(lacking.first()).cloned()
}

/// Where a worker listens by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There.
    Listens(Vec<OwnAddress>),
    /// The system does not show it.
    Hidden,
    /// The inspection was not finished.
    Unfinished,
}

/// A worker that was inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSeen {
    /// The worker.
    pub worker: WorkerId,
    /// Where it listens.
    pub seen: Seen,
    /// Its last words on standard error, if they are known and were asked for.
    pub words: Option<String>,
}

/// The result of [`Order::InspectListeners`](crate::supervise::Order::InspectListeners).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnInspection {
    /// The workers.
    pub workers: Vec<WorkerSeen>,
    /// The time that it took.
    pub took: Duration,
}

/// Whether a text names the port or path of an address.
pub(super) fn names(words: &str, at: &Address) -> bool {
    match (at.address_type, at.port, at.address.as_deref()) {
        (AddressType::Unix, _, Some(path)) => words.contains(path),
        (_, Some(port), _) => {
            words.split(|c: char| !c.is_ascii_digit()).any(|number| number.parse() == Ok(port))
        }
        _ => false,
    }
}
