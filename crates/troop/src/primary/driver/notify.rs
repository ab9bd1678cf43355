//! Hears workers that say `READY=1`, as to systemd.

use std::io;
use std::os::fd::OwnedFd;

use troop_core::WorkerId;
use troop_sys::poll::Interest;
use troop_sys::{notify, process};

use super::{Driver, Token};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::primary::policies::ReadyWhen;
use crate::setup::Setup;

/// Notifications read before others have their turn.
const BURST: usize = 64;

impl Driver {
    /// From now on workers are ready when they say so, or listen.
    pub(crate) fn ready_when(&mut self, when: ReadyWhen) -> Result<()> {
        self.ready_when = when;
        if when == ReadyWhen::Notified {
            let (socket, name) =
                notify::bind_socket().map_err(Error::io("make a socket for notifications"))?;
            self.poller
                .add(&socket, Token::Notify, Interest::Read)
                .map_err(Error::io("watch for notifications"))?;
            self.notify = Some(socket);
            let mut setup = Setup::clone(&self.setup);
            setup.cluster.notify = Some(name.into());
            self.setup = setup.into();
        }
        Ok(())
    }

    pub(super) fn read_notifications(&mut self) {
        let Some(socket) = self.notify.take() else { return };
        // A runtime reports it only once.
        self.unfinished |= (0..BURST).all(|_| self.hear(&socket));
        self.notify = Some(socket);
    }

    fn hear(&mut self, socket: &OwnedFd) -> bool {
        let mut bytes = [0; 4096];
        // Whoever sends descriptors along, which anybody can, holds up nobody with them.
        let closer = self.closing.get_or_insert_default().closer().clone();
        let received = closer.guard(|| notify::receive(socket, &mut bytes));
        match received {
            Ok((len, Some(pid)))
                if bytes[..len].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") =>
            {
                if let Some(worker) = self.worker_of(pid) {
                    self.says_ready(worker);
                }
                true
            }
            // Other news are of no use here.
            Ok(_) => true,
            Err(e) => e.kind() == io::ErrorKind::Interrupted,
        }
    }

    /// The worker that a process is, or whose group it is in.
    fn worker_of(&self, pid: u32) -> Option<WorkerId> {
        let of = |pid| {
            self.processes
                .iter()
                .find(|(_, process)| process.handle.pid() == pid)
                .map(|(id, _)| *id)
        };
        of(pid).or_else(|| process::group_of(pid).and_then(of))
    }

    fn says_ready(&mut self, worker: WorkerId) {
        if let Some(supervisor) = self.cluster.supervisor_mut() {
            supervisor.reported_ready(self.now, worker);
        }
    }

    /// Finds what workers have said among the messages from `from` on.
    pub(super) fn apply_ready_messages(&mut self, from: usize) {
        if self.ready_when != ReadyWhen::Message {
            return;
        }
        let is_ready = |event: &Event| match event {
            Event::Message { worker, message } if message.as_json() == "\"ready\"" => {
                Some(worker.id())
            }
            _ => None,
        };
        let ready: Vec<_> =
            self.events[from.min(self.events.len())..].iter().filter_map(is_ready).collect();
        ready.into_iter().for_each(|worker| self.says_ready(worker));
    }
}
