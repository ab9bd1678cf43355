//! Hears workers that say that they are ready: by `READY=1`, as to systemd, or by a message.

use std::io;
use std::os::fd::OwnedFd;

use troop_core::WorkerId;
use troop_sys::poll::Interest;
use troop_sys::{notify, process};

use super::Workers;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::primary::driver::{Driver, Token};
use crate::primary::policies::ReadyWhen;
use crate::setup::Setup;

/// Notifications read before others have their turn.
const BURST: usize = 64;

/// How workers say that they are ready.
pub(super) struct Readiness {
    when: ReadyWhen,
    /// Where they send notifications.
    socket: Option<OwnedFd>,
}

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness { when: ReadyWhen::Auto, socket: None }
    }
}

impl Workers {
    /// The worker that a process is, or whose group it is in.
    fn worker_of(&self, pid: u32) -> Option<WorkerId> {
        let of = |pid| self.handles().find(|worker| worker.pid() == pid).map(|worker| worker.id());
        of(pid).or_else(|| process::group_of(pid).and_then(of))
    }
}

impl Driver {
    /// From now on workers are ready when they say so, or listen.
    pub(crate) fn ready_when(&mut self, when: ReadyWhen) -> Result<()> {
        self.workers.readiness.when = when;
        if when == ReadyWhen::Notified {
            let (socket, name) =
                notify::bind_socket().map_err(Error::io("make a socket for notifications"))?;
            self.poller
                .add(&socket, Token::Notify, Interest::Read)
                .map_err(Error::io("watch for notifications"))?;
            self.workers.readiness.socket = Some(socket);
            let mut setup = Setup::clone(&self.workers.setup);
            setup.cluster.notify = Some(name.into());
            self.workers.setup = setup.into();
        }
        Ok(())
    }

    pub(in crate::primary::driver) fn read_notifications(&mut self) {
        let Some(socket) = self.workers.readiness.socket.take() else { return };
        // A runtime reports it only once.
        self.unfinished |= (0..BURST).all(|_| self.hear(&socket));
        self.workers.readiness.socket = Some(socket);
    }

    fn hear(&mut self, socket: &OwnedFd) -> bool {
        let mut bytes = [0; 4096];
        // Descriptors sent along, as any process may do, must not block this thread when closed.
        let closer = self.closing.closer().clone();
        let received = closer.guard(|| notify::receive(socket, &mut bytes));
        match received {
            Ok((len, Some(pid)))
                if bytes[..len].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") =>
            {
                if let Some(worker) = self.workers.worker_of(pid) {
                    self.says_ready(worker);
                }
                true
            }
            // Other news are of no use here.
            Ok(_) => true,
            Err(e) => e.kind() == io::ErrorKind::Interrupted,
        }
    }

    pub(in crate::primary::driver) fn says_ready(&mut self, worker: WorkerId) {
        if let Some(supervisor) = self.cluster.supervisor_mut() {
            supervisor.reported_ready(self.now, worker);
        }
    }

    /// Publishes the oldest messages of workers' programs, among which may be reports that workers
    /// are ready.
    pub(in crate::primary::driver) fn report_messages(&mut self, count: usize) {
        let messages = self.channels.messages_mut();
        let is_ready = |event: &Event| match event {
            Event::Message { worker, message } if message.as_json() == "\"ready\"" => {
                Some(worker.id())
            }
            _ => None,
        };
        let mut ready = Vec::new();
        if self.workers.readiness.when == ReadyWhen::Message {
            ready.extend(messages.iter().take(count).filter_map(is_ready));
        }
        self.events.take_from(messages, count);
        ready.into_iter().for_each(|worker| self.says_ready(worker));
    }
}
