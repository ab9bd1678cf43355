//! Moves what the program sends to workers from their mailboxes to their channels.

use troop_core::primary::Primary;
use troop_core::{Time, WorkerId};

use super::{Channels, RETRY_PAUSE};
use crate::channel::Unsettled;
use crate::primary::driver::Driver;

impl Channels {
    /// Moves what is in a worker's mailbox to its channel's outbox.
    pub(super) fn take_mail(&mut self, worker: WorkerId, core: &mut Primary) {
        let Some(channel) = self.of_workers.get_mut(&worker) else { return };
        let mail = &mut self.mail;
        channel.worker.shared.mailbox.take(mail);
        let mut from = 0;
        for posted in mail.handles.drain(..) {
            channel.outbox.push(&mail.bytes[from..posted.at]);
            from = posted.at;
            self.last_ticket += 1;
            if let Ok(copy) = posted.handle.try_clone() {
                channel.outbox.push_with(&posted.line, copy);
                channel.unsettled.insert(
                    self.last_ticket,
                    Unsettled::new(posted.line, posted.handle, posted.settled, posted.tries),
                );
                core.user_handle_sent(worker, self.last_ticket);
            } else if let Some(settled) = posted.settled {
                let _ = settled.send(false);
            }
        }
        channel.outbox.take_in(&mut mail.bytes, from);
    }

    /// A worker has taken a handle, or not. Those of a relay's program are answered there.
    pub(in crate::primary::driver) fn handle_settled(
        &mut self,
        now: Time,
        core: &mut Primary,
        worker: WorkerId,
        ticket: u64,
        delivered: bool,
    ) {
        if self.relays.get_mut(&worker).is_some_and(|relay| relay.settled(ticket, delivered)) {
            self.unflushed_relays.push(worker);
            return;
        }
        let Some(channel) = self.of_workers.get_mut(&worker) else { return };
        let again = channel.unsettled.remove(&ticket).and_then(|u| u.settle(delivered));
        let Some((unsettled, copy)) = again else {
            channel.show_unwritten();
            return;
        };
        channel.outbox.push_with(&unsettled.line, copy);
        channel.unsettled.insert(ticket, unsettled);
        core.user_handle_sent(worker, ticket);
        // Not at once: the worker needs a moment to free a descriptor.
        self.retry.push(worker);
        self.retry_at.get_or_insert(now + RETRY_PAUSE);
    }
}

impl Driver {
    /// Fetches what the program has put into a worker's mailbox.
    pub(in crate::primary::driver) fn collect(&mut self, worker: WorkerId) {
        self.channels.take_mail(worker, &mut self.cluster.primary);
        self.channels.unflushed.push(worker);
    }
}
