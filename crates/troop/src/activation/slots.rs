//! A socket for each slot, in a group among which the kernel chooses.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use troop_core::steer::program;
use troop_sys::options::{Options, Restored, Use};
use troop_sys::{group, socket};

use super::BACKLOG;

/// A slot's socket.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) fd: Arc<OwnedFd>,
    /// What it had before a worker had it.
    pub(super) options: Options,
}

/// The sockets of a group.
#[derive(Debug)]
pub(super) struct Members {
    /// Those of slots, by slot.
    slots: Vec<Own>,
    /// Whose each is, in the order in which the kernel numbers them. `None` is the primary's own,
    /// which is never chosen.
    order: Vec<Option<usize>>,
    /// The order is not known any more, but for the primary's own, which is the last one.
    is_mixed: bool,
}

/// The sockets of an activated listener that is steered, one for each slot.
#[derive(Debug)]
pub(super) struct Slots(Mutex<Members>);

impl std::ops::Deref for Members {
    type Target = [Own];

    fn deref(&self) -> &[Own] {
        &self.slots
    }
}

impl Members {
    pub(super) fn restore(&self, used: Use) -> Vec<Restored> {
        self.slots.iter().map(|own| own.options.restore(&own.fd, used)).collect()
    }
}

impl Slots {
    /// Makes a group of a socket that is bound: sockets for slots first, and then its own, for
    /// which the kernel has nothing from the start.
    pub(super) fn open(founder: &OwnedFd, slots: usize) -> io::Result<Slots> {
        // It was bound without it, so that nobody else had the address.
        group::found(founder)?;
        let sockets = (0..slots).map(|_| sibling(founder)).collect::<io::Result<Vec<_>>>()?;
        if let Some(first) = sockets.first() {
            group::steer(first.fd.as_fd(), &by_share(&vec![1; slots]))?;
        }
        socket::listen(founder, BACKLOG)?;
        sockets.iter().try_for_each(|own| group::lock(own.fd.as_fd()))?;
        let order = (0..slots).map(Some).chain([None]).collect();
        Ok(Slots(Mutex::new(Members { slots: sockets, order, is_mixed: false })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket of a slot, which is opened if there is none yet.
    pub(super) fn of(&self, founder: &OwnedFd, slot: usize) -> io::Result<Arc<OwnedFd>> {
        let mut members = self.lock();
        while members.slots.len() <= slot {
            let own = sibling(founder)?;
            group::lock(own.fd.as_fd())?;
            let next = members.slots.len();
            members.slots.push(own);
            if members.is_mixed {
                // The primary's own has to stay the last one.
                listen_as_last(founder)?;
            }
            members.order.push(Some(next));
        }
        Ok(members.slots[slot].fd.clone())
    }

    /// Has the kernel choose among the slots, each in proportion to its share.
    pub(super) fn steer(&self, founder: &OwnedFd, shares: &[u32]) -> io::Result<()> {
        let members = self.lock();
        let share =
            |slot: &Option<usize>| slot.map_or(0, |slot| shares.get(slot).copied().unwrap_or(0));
        let all = match members.is_mixed {
            false => members.order.iter().map(share).collect(),
            true => vec![1; members.slots.len()],
        };
        // By way of the primary's own, which nobody else has.
        group::steer(founder.as_fd(), &by_share(&all))
    }

    /// Lets sockets listen again that workers have shut down. Returns whose they were, and whether
    /// the kernel's numbers are still known.
    pub(super) fn revive(&self, founder: &OwnedFd) -> io::Result<(Vec<usize>, bool)> {
        let mut members = self.lock();
        let is_shut = |slot: &usize| socket::is_shut_down(members.slots[*slot].fd.as_fd());
        let shut: Vec<usize> = (0..members.slots.len()).filter(is_shut).collect();
        let at = socket::local_address(founder);
        for slot in &shut {
            socket::listen_again(members.slots[*slot].fd.as_fd(), at, BACKLOG)?;
        }
        match shut.as_slice() {
            [] => {}
            [slot] if !members.is_mixed => {
                // The kernel gave its number to the last one, and the last number to it.
                if let Some(number) = members.order.iter().position(|whose| *whose == Some(*slot)) {
                    let whose = members.order.swap_remove(number);
                    members.order.push(whose);
                }
            }
            _ => {
                // Which of several was the first is not known.
                members.is_mixed = true;
                listen_as_last(founder)?;
            }
        }
        Ok((shut, !members.is_mixed))
    }
}

/// Nothing waits in it that would be lost, because it is never chosen.
fn listen_as_last(founder: &OwnedFd) -> io::Result<()> {
    let at = socket::local_address(founder);
    socket::shut_down(founder);
    socket::listen_again(founder, at, BACKLOG)
}

/// One more socket of a group.
fn sibling(first: &OwnedFd) -> io::Result<Own> {
    let fd = group::sibling(first.as_fd())?;
    socket::listen(&fd, BACKLOG)?;
    socket::set_nonblocking(&fd, false)?;
    let options = Options::of(&fd);
    Ok(Own { fd: Arc::new(fd), options })
}

fn by_share(shares: &[u32]) -> Vec<group::Instruction> {
    let program = program::by_share(shares).into_iter();
    program
        .map(|i| group::Instruction {
            code: i.code,
            jump_true: i.jump_true,
            jump_false: i.jump_false,
            operand: i.operand,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn opened(slots: usize) -> (OwnedFd, Slots, std::net::SocketAddr) {
        let founder = troop_sys::listen::tcp(Some([127, 0, 0, 1].into()), 0, false).unwrap();
        let slots = Slots::open(&founder, slots).unwrap();
        let at = socket::local_address(&founder).unwrap();
        (founder, slots, at)
    }

    fn waiting(slots: &Slots) -> Vec<u32> {
        slots.lock().iter().map(|own| socket::accept_queue(own.fd.as_fd()).unwrap()).collect()
    }

    /// Each slot gets what is meant for it.
    fn are_numbered(founder: &OwnedFd, slots: &Slots, at: std::net::SocketAddr) {
        let count = slots.lock().len();
        for slot in 0..count {
            let shares: Vec<u32> = (0..count).map(|other| u32::from(other == slot)).collect();
            slots.steer(founder, &shares).unwrap();
            let before = waiting(slots);
            let _client = TcpStream::connect(at).unwrap();
            let after = waiting(slots);
            let got: Vec<usize> =
                (0..count).filter(|other| after[*other] > before[*other]).collect();
            assert_eq!(got, [slot], "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_socket_that_was_shut_down_gets_what_is_meant_for_its_slot_again() {
        let (founder, slots, at) = opened(4);
        are_numbered(&founder, &slots, at);
        slots.of(&founder, 5).unwrap();
        are_numbered(&founder, &slots, at);
        for slot in [0, 3, 5, 2, 0] {
            socket::shut_down(slots.lock()[slot].fd.as_fd());
            assert_eq!(slots.revive(&founder).unwrap(), (vec![slot], true));
            are_numbered(&founder, &slots, at);
        }
        assert_eq!(slots.revive(&founder).unwrap(), (vec![], true));
    }

    #[test]
    fn where_several_were_shut_down_all_slots_get_connections_and_the_primary_gets_none() {
        let (founder, slots, at) = opened(3);
        for slot in [0, 2] {
            socket::shut_down(slots.lock()[slot].fd.as_fd());
        }
        assert_eq!(slots.revive(&founder).unwrap(), (vec![0, 2], false));
        slots.of(&founder, 3).unwrap();
        socket::shut_down(slots.lock()[1].fd.as_fd());
        assert_eq!(slots.revive(&founder).unwrap(), (vec![1], false));
        slots.steer(&founder, &[1, 0, 0, 0]).unwrap();
        let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
        assert!(waiting(&slots).iter().all(|waits| *waits > 10), "{:?}", waiting(&slots));
        assert_eq!(waiting(&slots).iter().sum::<u32>(), 200);
        drop(clients);
    }
}
