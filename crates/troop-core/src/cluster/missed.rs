//! Addresses that clients could reach and cannot any more, although nobody has asked for that.

use serde::{Deserialize, Serialize};

use crate::event::Address;

/// The most that are remembered; of more, the oldest are forgotten.
const MAX_MISSED: usize = 64;

/// An address that workers should have taken over from those before them and did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Missed {
    /// Where a worker had asked to listen.
    asked: Address,
    /// Where that was.
    at: Address,
}

/// Addresses that no worker has any more, and a successor should.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedAddresses {
    addresses: Vec<Missed>,
    /// The reload in progress may do without addresses.
    may_move: bool,
}

impl MissedAddresses {
    /// No worker has an address any more. `asked` is what a worker had asked for, `at` what it got.
    pub fn lost(&mut self, asked: Address, at: Address) {
        self.addresses.retain(|known| known.asked != asked);
        if self.addresses.len() >= MAX_MISSED {
            self.addresses.remove(0);
        }
        self.addresses.push(Missed { asked, at });
    }

    /// Whether nothing is missed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// A worker listens at these addresses, in the words in which it asked for them. Returns those
    /// that had been missed.
    pub fn found(&mut self, asked: &[Address]) -> Vec<Address> {
        let (found, missed) = std::mem::take(&mut self.addresses)
            .into_iter()
            .partition(|known| asked.contains(&known.asked));
        self.addresses = missed;
        let found: Vec<Missed> = found;
        found.into_iter().map(|known| known.at).collect()
    }

    /// A reload begins that may, or may not, do without addresses that were served.
    pub fn reload_started(&mut self, may_move: bool) {
        self.may_move = may_move;
    }

    /// The reload has succeeded. Where its workers may listen elsewhere, nothing is missed.
    pub fn reload_finished(&mut self) {
        if std::mem::take(&mut self.may_move) {
            self.addresses.clear();
        }
    }

    /// The addresses that clients cannot reach, as they were bound.
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

    fn missed(ports: impl IntoIterator<Item = i64>) -> MissedAddresses {
        let mut missed = MissedAddresses::default();
        ports.into_iter().for_each(|port| missed.lost(address(port), address(port + 1000)));
        missed
    }

    #[test]
    fn an_address_is_missed_until_a_worker_listens_there() {
        let mut missed = missed([1, 2]);
        assert_eq!(missed.found(&[address(3)]), []);
        assert_eq!(missed.found(&[address(2), address(3)]), [address(1002)]);
        assert_eq!(missed.iter().collect::<Vec<_>>(), [&address(1001)]);
    }

    #[test]
    fn only_a_reload_that_may_move_and_succeeds_ends_what_is_missed() {
        let mut missed = missed([1]);
        missed.reload_started(false);
        missed.reload_finished();
        assert!(!missed.is_empty());
        missed.reload_started(true);
        assert!(!missed.is_empty());
        missed.reload_finished();
        assert!(missed.is_empty());
        // What is lost later has nothing to do with that reload.
        missed.lost(address(2), address(2));
        missed.reload_finished();
        assert!(!missed.is_empty());
    }

    proptest! {
        /// Each address is known once, the newest of them last, and no more than there is room for.
        #[test]
        fn what_is_remembered_is_bounded(ports in prop::collection::vec(0..200i64, 0..300)) {
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
