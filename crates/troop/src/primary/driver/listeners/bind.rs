//! Opens listeners for workers.

use std::io;
use std::os::fd::AsFd;

use troop_core::primary::{Bind, BindSpec, Repairs};
use troop_core::{ListenerId, WorkerId};
use troop_sys::{diag, group, socket};

use super::Listeners;
use crate::primary::driver::Driver;
use crate::primary::listener::{self, Listener, Opened, Socket};

impl Listeners {
    /// Refuses a socket that is unfit for its listener beside the others.
    fn check(&self, spec: &BindSpec, opened: &mut Opened) -> io::Result<()> {
        // A descriptor of the primary's by its number may be one that it listens on already.
        let inode = diag::inode(&opened.fd)?;
        if let Some((_, same)) = self.sockets.iter().find(|(_, socket)| socket.inode == inode) {
            if self.open.get(&same.listener).is_some_and(|listener| listener.grouped) {
                return Err(rustix::io::Errno::INVAL.into());
            }
            if spec.group {
                opened.alone.get_or_insert_with(|| {
                    "another listener has the same socket, so its connections are handed over in turn".into()
                });
            }
        }
        Ok(())
    }

    /// Adds a listener with its first socket, and returns the number of that.
    fn add(&mut self, id: ListenerId, spec: BindSpec, key: String, opened: Opened) -> usize {
        let grouped = spec.group && opened.alone.is_none();
        let local = socket::local_address(&opened.fd);
        let is_shared = !grouped && spec.listen.is_none();
        if is_shared && !opened.given {
            // No worker can attach a filter (an error for Unix sockets, which have none).
            let _ = group::lock(opened.fd.as_fd());
        }
        let founder = self.sockets.insert(match is_shared {
            true => Socket::shared(opened.fd, id, opened.options),
            false => Socket::new(opened.fd, id),
        });
        let backlog = spec.listen;
        let listener = Listener {
            sockets: vec![founder],
            grouped,
            file: opened.file,
            spec,
            local,
            given: opened.given,
            has_listened: false,
            shut_downs: Repairs::default(),
            changes: Repairs::default(),
            is_unfit: false,
            is_lost: false,
            key,
            backlog,
            intruders: Vec::new(),
            program: Vec::new(),
        };
        self.open.insert(id, listener);
        founder
    }
}

impl Driver {
    pub(in crate::primary::driver) fn bind(
        &mut self,
        id: ListenerId,
        worker: WorkerId,
        spec: BindSpec,
    ) {
        let rights = match self.workers.rights_of(worker) {
            Ok(rights) => rights,
            Err(e) => {
                self.cluster.primary.bound(self.now, id, Err(listener::errno(&e)));
                return;
            }
        };
        let key = self.cluster.primary.listener_key(id).unwrap_or_default();
        let key = troop_core::wire::outgoing::quote(key);
        let has_room = self.listeners.sockets.len() < self.cluster.primary.budget().listeners();
        let opened = match () {
            () if !has_room => Err(rustix::io::Errno::MFILE.into()),
            () if matches!(spec.target, Bind::Unix { .. })
                && self.workers.names_dead_paths(worker) =>
            {
                Err(rustix::io::Errno::TIMEDOUT.into())
            }
            () => {
                let begun = std::time::Instant::now();
                let opened = listener::open(&spec, &self.listeners.inherited, &rights);
                if matches!(spec.target, Bind::Unix { .. }) {
                    self.workers.took_for_path(worker, begun.elapsed());
                }
                opened
            }
        };
        let opened = opened.and_then(|mut opened| {
            if !self.leaves_the_reserve(&opened.fd) {
                return Err(rustix::io::Errno::MFILE.into());
            }
            self.listeners.check(&spec, &mut opened)?;
            Ok(opened)
        });
        let result = match opened {
            Ok(mut opened) => {
                let is_watched = spec.group && opened.alone.is_none() && spec.listen.is_some();
                if opened.given {
                    self.cluster.primary.keep_open(id);
                }
                if let Some(reason) = &opened.alone {
                    self.cluster.primary.cannot_steer(id, reason.clone());
                }
                let name = opened.name.take();
                let founder = self.listeners.add(id, spec, key, opened);
                if is_watched {
                    // What comes before there is a program, or a worker, may come here.
                    self.watch_socket(founder, true);
                }
                Ok(name)
            }
            Err(e) => {
                self.explain(id, worker, &e, &rights);
                let errno = listener::errno(&e);
                if rustix::io::Errno::from_raw_os_error(errno) == rustix::io::Errno::MFILE {
                    self.short("open a listener", e);
                }
                Err(errno)
            }
        };
        self.cluster.primary.bound(self.now, id, result);
        self.plan_upkeep();
    }
}
