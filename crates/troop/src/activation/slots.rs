//! A socket for each slot, in a group among which the kernel chooses.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use troop_core::steer::program;
use troop_sys::options::{Options, Restored, Use};
use troop_sys::{group, socket};

use super::BACKLOG;
use crate::primary::saved::{Key, Reader, Writer};

/// A slot's socket.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) fd: Arc<OwnedFd>,
    /// Its socket options before a worker had it.
    pub(super) options: Options,
}

/// The sockets of a group.
///
/// When one is shut down, the kernel gives its number to the last one, and one that listens again
/// the next number. So that no other socket changes its number, in whatever order several are shut
/// down, the last sockets of the group are spare ones of the primary, as many as there are slots.
#[derive(Debug)]
pub(super) struct Members {
    /// The sockets of slots, by slot.
    slots: Vec<Own>,
    /// Spare sockets, besides the first one of the group. The program never chooses them.
    spare: Vec<Arc<OwnedFd>>,
    /// The owner of each socket, in the kernel's order of numbers.
    order: Vec<Whose>,
    /// Whether the order is unknown, except that the primary's first socket is the last one.
    is_mixed: bool,
}

/// The owner of a socket of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Whose {
    Slot(usize),
    /// The primary; with the index of the spare socket, if it is known.
    Spare(Option<usize>),
}

/// The sockets of a group, written down.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedSlots {
    slots: Vec<(Key, Options)>,
    spare: Vec<Key>,
    order: Vec<Whose>,
    is_mixed: bool,
}

/// Maximum number of spare sockets per slot. More are needed when workers repeatedly shut down
/// several sockets at a time.
const MAX_SPARE: usize = 8;

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
    /// Makes a group of a bound socket: first sockets for slots listen, then the bound one, to
    /// which the kernel gives no connections.
    pub(super) fn open(founder: &OwnedFd, slots: usize) -> io::Result<Slots> {
        // It was bound without the option, so that no other process had the address.
        group::found(founder)?;
        let sockets = (0..slots).map(|_| sibling(founder)).collect::<io::Result<Vec<_>>>()?;
        if let Some(first) = sockets.first() {
            group::steer(first.fd.as_fd(), &by_share(&vec![1; slots]))?;
        }
        socket::listen(founder, BACKLOG)?;
        sockets.iter().try_for_each(|own| group::lock(own.fd.as_fd()))?;
        let order = (0..slots).map(Whose::Slot).chain([Whose::Spare(None)]).collect();
        let mut members = Members { slots: sockets, spare: Vec::new(), order, is_mixed: false };
        members.fill_up(founder)?;
        Ok(Slots(Mutex::new(members)))
    }

    pub(super) fn each(&self, act: impl Fn(BorrowedFd<'_>)) {
        let members = self.lock();
        members.iter().for_each(|own| act(own.fd.as_fd()));
        members.spare.iter().for_each(|spare| act(spare.as_fd()));
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn save(&self, to: &mut Writer<'_>) -> SavedSlots {
        let members = self.lock();
        SavedSlots {
            slots: members.iter().map(|own| (to.shared(&own.fd), own.options.clone())).collect(),
            spare: members.spare.iter().map(|spare| to.shared(spare)).collect(),
            order: members.order.clone(),
            is_mixed: members.is_mixed,
        }
    }

    /// Goes on with sockets that another primary has written down, some time before it ended.
    pub(super) fn restore(
        saved: SavedSlots,
        founder: &OwnedFd,
        from: &mut Reader,
    ) -> io::Result<Slots> {
        let SavedSlots { slots, spare, order, is_mixed } = saved;
        let slots = slots
            .into_iter()
            .map(|(key, options)| from.descriptor(key).map(|fd| Own { fd: Arc::new(fd), options }));
        let slots = slots.collect::<io::Result<_>>()?;
        let spare = spare.into_iter().map(|key| from.descriptor(key).map(Arc::new));
        let spare = spare.collect::<io::Result<_>>()?;
        let mut members = Members { slots, spare, order, is_mixed };
        // It has ended while it changed the order.
        if members.spare.iter().any(|spare| socket::is_shut_down(spare.as_fd())) {
            members.mix(founder)?;
        }
        Ok(Slots(Mutex::new(members)))
    }

    pub(super) fn shut_down(&self) {
        let members = self.lock();
        let own = members.slots.iter().map(|own| &own.fd);
        own.chain(&members.spare).for_each(|fd| socket::shut_listener_down(fd.as_fd()));
    }

    /// Returns the socket of a slot, and opens it if there is none yet.
    pub(super) fn of(&self, founder: &OwnedFd, slot: usize) -> io::Result<Arc<OwnedFd>> {
        let mut members = self.lock();
        while members.slots.len() <= slot {
            let own = sibling(founder)?;
            group::lock(own.fd.as_fd())?;
            let next = members.slots.len();
            members.slots.push(own);
            members.order.push(Whose::Slot(next));
            if members.is_mixed {
                // The primary's socket must stay the last one.
                listen_as_last(founder)?;
            } else {
                members.fill_up(founder)?;
            }
        }
        Ok(members.slots[slot].fd.clone())
    }

    /// Installs a program that chooses among the slots in proportion to their shares.
    pub(super) fn steer(&self, founder: &OwnedFd, shares: &[u32]) -> io::Result<()> {
        let members = self.lock();
        let share = |whose: &Whose| match whose {
            Whose::Slot(slot) => shares.get(*slot).copied().unwrap_or(0),
            Whose::Spare(_) => 0,
        };
        let all = match members.is_mixed {
            false => members.order.iter().map(share).collect(),
            true => vec![1; members.slots.len()],
        };
        // Through the primary's socket, which no other process has.
        group::steer(founder.as_fd(), &by_share(&all))
    }

    /// Makes sockets listen again that workers have shut down. Returns their owners, and whether
    /// the kernel's numbers are still known.
    pub(super) fn revive(&self, founder: &OwnedFd) -> io::Result<(Vec<usize>, bool)> {
        let mut members = self.lock();
        let is_shut = |slot: &usize| socket::is_shut_down(members.slots[*slot].fd.as_fd());
        let shut: Vec<usize> = (0..members.slots.len()).filter(is_shut).collect();
        let at = socket::local_address(founder);
        for slot in &shut {
            socket::listen_again(members.slots[*slot].fd.as_fd(), at, BACKLOG)?;
        }
        // A worker has shut its socket down and made it listen again, so a spare one got its
        // number, and clients that no worker serves.
        let is_misled = members.is_spare_chosen(founder);
        if shut.is_empty() && !is_misled {
            return Ok((shut, !members.is_mixed));
        }
        let is_known = !members.is_mixed
            && !is_misled
            && members.renumber(&shut, at).and_then(|()| members.fill_up(founder)).is_ok();
        if !is_known {
            members.mix(founder)?;
        }
        Ok((shut, !members.is_mixed))
    }
}

impl Members {
    /// Returns the number of spare sockets at the end of the order.
    fn spare_at_end(&self) -> usize {
        self.order.iter().rev().take_while(|whose| matches!(whose, Whose::Spare(_))).count()
    }

    /// Opens spare sockets until there is one for each slot at the end.
    fn fill_up(&mut self, founder: &OwnedFd) -> io::Result<()> {
        while self.spare_at_end() <= self.slots.len() {
            if self.spare.len() >= MAX_SPARE * self.slots.len() {
                return Err(io::Error::other("too many spare sockets"));
            }
            let Own { fd, .. } = sibling(founder)?;
            group::lock(fd.as_fd())?;
            self.order.push(Whose::Spare(Some(self.spare.len())));
            self.spare.push(fd);
        }
        Ok(())
    }

    /// Updates the order after these slots' sockets have left the group, in any order, and joined
    /// it again in this one. Spare sockets have taken their numbers.
    fn renumber(&mut self, shut: &[usize], at: Option<SocketAddr>) -> io::Result<()> {
        if shut.len() > self.spare_at_end() {
            return Err(io::Error::other("too few spare sockets"));
        }
        let is_shut = |whose: &Whose| matches!(whose, Whose::Slot(slot) if shut.contains(slot));
        let vacant: Vec<usize> =
            (0..self.order.len()).filter(|number| is_shut(&self.order[*number])).collect();
        let moved = self.order.split_off(self.order.len() - shut.len());
        // The positions of several are unknown.
        let moved = if let [one] = moved.as_slice() { *one } else { Whose::Spare(None) };
        vacant.iter().for_each(|number| self.order[*number] = moved);
        self.order.extend(shut.iter().copied().map(Whose::Slot));
        // Each leaving spare socket passes its number to the last one, until the last ones are
        // spare again. A single socket gets its number back.
        let mut left = Vec::new();
        while self.order.last().is_some_and(is_shut)
            && let Some((number, spare)) = self.first_known_spare()
        {
            socket::shut_down(self.spare[spare].as_fd());
            self.order.swap_remove(number);
            left.push(spare);
        }
        for spare in left {
            socket::listen_again(self.spare[spare].as_fd(), at, BACKLOG)?;
            self.order.push(Whose::Spare(Some(spare)));
        }
        Ok(())
    }

    fn first_known_spare(&self) -> Option<(usize, usize)> {
        self.order.iter().enumerate().find_map(|(number, whose)| match whose {
            Whose::Spare(Some(spare)) => Some((number, *spare)),
            _ => None,
        })
    }

    fn is_spare_chosen(&self, founder: &OwnedFd) -> bool {
        let all = self.spare.iter().map(AsRef::as_ref).chain([founder]);
        all.into_iter().any(|spare| socket::is_readable(spare.as_fd()))
    }

    /// Handles a lost order: all slots get connections evenly, and the primary none.
    fn mix(&mut self, founder: &OwnedFd) -> io::Result<()> {
        self.is_mixed = true;
        // This closes the connections that wait in them, which no worker would serve. They leave the
        // group at once, whoever has copies.
        self.spare.drain(..).for_each(|spare| socket::shut_listener_down(spare.as_fd()));
        listen_as_last(founder)
    }
}

/// Makes the group's first socket listen again as the last one. The program never chooses it, so
/// clients in its queue would wait for ever.
fn listen_as_last(founder: &OwnedFd) -> io::Result<()> {
    let at = socket::local_address(founder);
    socket::shut_down(founder);
    socket::listen_again(founder, at, BACKLOG)
}

/// Opens one more socket of a group.
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

    fn opened(slots: usize) -> (OwnedFd, Slots, SocketAddr) {
        let founder = troop_sys::listen::tcp(Some([127, 0, 0, 1].into()), 0, false).unwrap();
        let slots = Slots::open(&founder, slots).unwrap();
        let at = socket::local_address(&founder).unwrap();
        (founder, slots, at)
    }

    fn waiting(slots: &Slots) -> Vec<u32> {
        slots.lock().iter().map(|own| socket::accept_queue(own.fd.as_fd()).unwrap()).collect()
    }

    /// Each slot gets its connections.
    fn are_numbered(founder: &OwnedFd, slots: &Slots, at: SocketAddr) {
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
    fn a_socket_that_was_shut_down_gets_the_connections_of_its_slot_again() {
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
    fn each_slot_gets_its_connections_again_however_many_sockets_are_shut_down_at_a_time() {
        let (founder, slots, at) = opened(4);
        for shut in [&[0, 1][..], &[3, 0, 2], &[1, 2], &[2, 1, 0, 3], &[3, 1]] {
            for slot in shut {
                socket::shut_down(slots.lock()[*slot].fd.as_fd());
            }
            let mut all = shut.to_vec();
            all.sort_unstable();
            assert_eq!(slots.revive(&founder).unwrap(), (all, true));
            are_numbered(&founder, &slots, at);
        }
        slots.of(&founder, 5).unwrap();
        are_numbered(&founder, &slots, at);
        [5, 0].iter().for_each(|slot| socket::shut_down(slots.lock()[*slot].fd.as_fd()));
        assert_eq!(slots.revive(&founder).unwrap(), (vec![0, 5], true));
        are_numbered(&founder, &slots, at);
    }

    /// What another primary finds, which has copies of the sockets.
    fn gone_on_with(founder: &OwnedFd, slots: &Slots) -> (OwnedFd, Slots) {
        let mut writer = Writer::default();
        let founder = writer.descriptor(founder);
        let saved = serde_json::to_vec(&slots.save(&mut writer)).unwrap();
        let mut reader = writer.read();
        let founder = reader.descriptor(founder).unwrap();
        let saved = serde_json::from_slice(&saved).unwrap();
        let slots = Slots::restore(saved, &founder, &mut reader).unwrap();
        (founder, slots)
    }

    #[test]
    fn another_primary_knows_the_numbers_of_the_sockets() {
        let (founder, slots, at) = opened(3);
        [1, 0].iter().for_each(|slot| socket::shut_down(slots.lock()[*slot].fd.as_fd()));
        assert_eq!(slots.revive(&founder).unwrap(), (vec![0, 1], true));
        let (other, others) = gone_on_with(&founder, &slots);
        drop((founder, slots));
        are_numbered(&other, &others, at);
        socket::shut_down(others.lock()[2].fd.as_fd());
        assert_eq!(others.revive(&other).unwrap(), (vec![2], true));
        others.of(&other, 4).unwrap();
        are_numbered(&other, &others, at);
    }

    #[test]
    fn a_group_whose_order_is_lost_gives_no_connections_to_sockets_of_which_there_are_copies() {
        let (founder, slots, at) = opened(3);
        let _copies = gone_on_with(&founder, &slots);
        slots.lock().mix(&founder).unwrap();
        slots.steer(&founder, &[1, 0, 0]).unwrap();
        are_served_alike(&slots, at);
    }

    #[test]
    fn where_a_primary_has_ended_while_it_changed_the_order_all_slots_are_served_alike() {
        let (founder, slots, at) = opened(3);
        let (other, others) = gone_on_with(&founder, &slots);
        let spare = slots.lock().spare[1].clone();
        socket::shut_down(spare.as_fd());
        drop(others);
        let (other, others) = gone_on_with(&other, &slots);
        drop((founder, slots));
        assert!(others.lock().is_mixed);
        others.steer(&other, &[1, 0, 0]).unwrap();
        are_served_alike(&others, at);
    }

    /// What was done once too often has all slots served alike.
    fn are_served_alike(slots: &Slots, at: SocketAddr) {
        let before: u32 = waiting(slots).iter().sum();
        let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
        assert!(waiting(slots).iter().all(|waits| *waits > 10), "{:?}", waiting(slots));
        assert_eq!(waiting(slots).iter().sum::<u32>() - before, 200);
        drop(clients);
    }

    #[test]
    fn where_several_are_shut_down_over_and_over_all_slots_get_connections_and_the_primary_gets_none()
     {
        let (founder, slots, at) = opened(3);
        let known = (0..100).take_while(|_| {
            [0, 2].iter().for_each(|slot| socket::shut_down(slots.lock()[*slot].fd.as_fd()));
            let (shut, known) = slots.revive(&founder).unwrap();
            assert_eq!(shut, [0, 2]);
            known
        });
        let known = known.count();
        assert!((5..20).contains(&known), "{known}");
        slots.of(&founder, 3).unwrap();
        socket::shut_down(slots.lock()[1].fd.as_fd());
        assert_eq!(slots.revive(&founder).unwrap(), (vec![1], false));
        slots.steer(&founder, &[1, 0, 0, 0]).unwrap();
        are_served_alike(&slots, at);
    }

    #[test]
    fn clients_of_a_worker_that_has_exchanged_its_number_with_a_spare_socket_do_not_wait_for_ever()
    {
        let (founder, slots, at) = opened(3);
        // Unnoticed, as it listens again before anybody looks.
        let own = slots.lock()[1].fd.clone();
        socket::shut_down(own.as_fd());
        socket::listen_again(own.as_fd(), Some(at), BACKLOG).unwrap();
        slots.steer(&founder, &[0, 1, 0]).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        assert_eq!(waiting(&slots).iter().sum::<u32>(), 0, "it waits where nobody accepts");
        assert_eq!(slots.revive(&founder).unwrap(), (vec![], false));
        // It can ask again.
        client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let end = std::io::Read::read(&mut client, &mut [0]);
        assert!(!end.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
        slots.steer(&founder, &[0, 1, 0]).unwrap();
        are_served_alike(&slots, at);
    }
}
