//! Missed addresses: clients could reach them before and cannot any more, although no reload
//! permitted that.

use serde::{Deserialize, Serialize};

use crate::asked::Asked;
use crate::event::Address;

/// Maximum number of missed addresses; the oldest are forgotten first.
const MAX_MISSED: usize = 64;

/// An address that successors should have taken over and did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Missed {
    /// The address that a worker had asked for.
    asked: Asked,
    /// The bound address.
    at: Address,
}

/// Addresses without a worker, on which a successor should listen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedAddresses {
    addresses: Vec<Missed>,
    /// Whether the current reload may lose addresses.
    may_move: bool,
}

impl MissedAddresses {
    /// Records an address without a worker. `asked` is the requested address, `at` the bound one.
    pub fn lost(&mut self, asked: Asked, at: Address) {
        self.addresses.retain(|known| known.asked != asked);
        if self.addresses.len() >= MAX_MISSED {
            self.addresses.remove(0);
        }
        self.addresses.push(Missed { asked, at });
    }

    /// Whether no address is missed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Handles the requested addresses of a worker, and returns those that had been missed.
    pub fn found(&mut self, asked: &[Asked]) -> Vec<Address> {
        let (found, missed) = std::mem::take(&mut self.addresses)
            .into_iter()
            .partition(|known| asked.iter().any(|asked| asked.takes_over(&known.asked)));
        self.addresses = missed;
        let found: Vec<Missed> = found;
        found.into_iter().map(|known| known.at).collect()
    }

    /// Handles the start of a reload, which may lose addresses if `may_move`.
    pub fn reload_started(&mut self, may_move: bool) {
        self.may_move = may_move;
    }

    /// Handles a successful reload. If it may lose addresses, none is missed any more.
    pub fn reload_finished(&mut self) {
        if std::mem::take(&mut self.may_move) {
            self.addresses.clear();
        }
    }

    /// Returns the bound addresses that clients cannot reach.
    pub fn iter(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter().map(|known| &known.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::AddressType;

    fn address(port: i64) -> Address {
        Address { address: None, port: Some(port), address_type: AddressType::Tcp4, fd: None }
    }

    fn asked(port: i64) -> Asked {
        Asked::by_several(address(port))
    }

    fn missed(ports: impl IntoIterator<Item = i64>) -> MissedAddresses {
        let mut missed = MissedAddresses::default();
        ports.into_iter().for_each(|port| missed.lost(asked(port), address(port + 1000)));
        missed
    }

    #[test]
    fn an_address_is_missed_until_a_worker_listens_there() {
        let mut missed = missed([1, 2]);
        assert_eq!(missed.found(&[asked(3)]), []);
        assert_eq!(missed.found(&[asked(2), asked(3)]), [address(1002)]);
        assert_eq!(missed.iter().collect::<Vec<_>>(), [&address(1001)]);
    }

    #[test]
    fn only_a_successful_reload_that_may_move_clears_missed_addresses() {
        let mut missed = missed([1]);
        missed.reload_started(false);
        missed.reload_finished();
        assert!(!missed.is_empty());
        missed.reload_started(true);
        assert!(!missed.is_empty());
        missed.reload_finished();
        assert!(missed.is_empty());
        // Addresses that are lost later are missed again.
        missed.lost(asked(2), address(2));
        missed.reload_finished();
        assert!(!missed.is_empty());
    }

    proptest! {
        /// Each address is kept once, the newest last, up to the maximum.
        #[test]
        fn the_number_of_missed_addresses_is_bounded(ports in prop::collection::vec(0..200i64, 0..300)) {
            let missed = missed(ports.iter().copied());
            let mut newest: Vec<i64> = Vec::new();
            for port in ports.iter().rev() {
                if !newest.contains(port) && newest.len() < MAX_MISSED {
                    newest.insert(0, *port);
                }
            }
            let known: Vec<_> = missed.iter().filter_map(|at| at.port).map(|p| p - 1000).collect();
            prop_assert_eq!(known, newest);
        }
    }
}
