//! Writes down the listeners, and goes on with those that another primary has written down.

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use troop_core::primary::{BindSpec, Repairs};
use troop_core::{ListenerId, Time};
use troop_sys::group::Instruction;
use troop_sys::options::Options;

use super::Listeners;
use super::abandoned::Abandoned;
use crate::inherited::InheritedSocket;
use crate::primary::driver::poller::EventPoller;
use crate::primary::listener::{Listener, Socket};
use crate::primary::saved::{Key, Reader, SavedFile, Writer};

/// All listeners.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::primary::driver) struct SavedListeners {
    open: Vec<SavedListener>,
    sockets: Vec<SavedSocket>,
    inherited: Vec<SavedInherited>,
    abandoned: Vec<(Key, ListenerId)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedListener {
    id: ListenerId,
    sockets: Vec<usize>,
    grouped: bool,
    file: Option<SavedFile>,
    spec: BindSpec,
    local: Option<SocketAddr>,
    given: bool,
    has_listened: bool,
    shut_downs: Repairs,
    changes: Repairs,
    is_unfit: bool,
    is_lost: bool,
    key: String,
    backlog: Option<u32>,
    intruders: Vec<u64>,
    program: Vec<Instruction>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSocket {
    number: usize,
    fd: Key,
    listener: ListenerId,
    options: Option<Box<Options>>,
    is_watched: bool,
    retired: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedInherited {
    name: String,
    number: i32,
    socket: Key,
    options: Options,
}

impl SavedListeners {
    /// Leaves the others out. Connections are accepted where that is asked for, and on founders of groups.
    pub(in crate::primary::driver) fn retain(&mut self, is_known: impl Fn(ListenerId) -> bool) {
        self.open.retain(|listener| is_known(listener.id));
        self.sockets.retain(|socket| is_known(socket.listener));
        let grouped = self.open.iter().filter(|listener| listener.grouped);
        let founders: Vec<_> = grouped.filter_map(|one| one.sockets.first().copied()).collect();
        for socket in &mut self.sockets {
            socket.is_watched &= founders.contains(&socket.number);
        }
    }
}

impl Listeners {
    pub(in crate::primary::driver) fn save<'a>(&'a self, to: &mut Writer<'a>) -> SavedListeners {
        let open = self.open.iter().map(|(id, listener)| SavedListener {
            id: *id,
            sockets: listener.sockets.clone(),
            grouped: listener.grouped,
            file: listener.file.as_ref().map(|file| SavedFile::of(file, to)),
            spec: listener.spec.clone(),
            local: listener.local,
            given: listener.given,
            has_listened: listener.has_listened,
            shut_downs: listener.shut_downs,
            changes: listener.changes,
            is_unfit: listener.is_unfit,
            is_lost: listener.is_lost,
            key: listener.key.clone(),
            backlog: listener.backlog,
            intruders: listener.intruders.clone(),
            program: listener.program.clone(),
        });
        let open = open.collect();
        let sockets = self.sockets.iter().map(|(number, socket)| SavedSocket {
            number,
            fd: to.descriptor(&socket.fd),
            listener: socket.listener,
            options: socket.options.clone(),
            // Those that cannot be watched are found again.
            is_watched: socket.watched && !socket.unreported,
            retired: socket.retired,
        });
        let sockets = sockets.collect();
        let inherited = self.inherited.iter().map(|own| SavedInherited {
            name: own.name().to_owned(),
            number: own.number(),
            socket: to.shared(&own.socket),
            options: own.options.as_ref().clone(),
        });
        let inherited = inherited.collect();
        let abandoned = self.abandoned.sockets();
        let abandoned = abandoned.map(|socket| (to.descriptor(&socket.fd), socket.listener));
        SavedListeners { open, sockets, inherited, abandoned: abandoned.collect() }
    }

    /// Goes on with these listeners.
    pub(in crate::primary::driver) fn restore(
        &mut self,
        now: Time,
        saved: SavedListeners,
        from: &mut Reader,
        poller: &EventPoller,
    ) -> io::Result<()> {
        let mut watched = Vec::new();
        let socket = |saved: SavedSocket| -> io::Result<(usize, Socket)> {
            let SavedSocket { number, fd, listener, options, is_watched, retired } = saved;
            watched.extend(is_watched.then_some(number));
            let socket = Socket::new(from.socket(fd)?, listener);
            Ok((number, Socket { options, retired, ..socket }))
        };
        let sockets = saved.sockets.into_iter().map(socket);
        self.sockets = sockets.collect::<io::Result<_>>()?;
        for saved in saved.open {
            let file = saved.file.map(|file| file.restore(from)).transpose()?;
            let listener = Listener {
                sockets: saved.sockets,
                grouped: saved.grouped,
                file,
                spec: saved.spec,
                local: saved.local,
                given: saved.given,
                has_listened: saved.has_listened,
                shut_downs: saved.shut_downs,
                changes: saved.changes,
                is_unfit: saved.is_unfit,
                is_lost: saved.is_lost,
                key: saved.key,
                backlog: saved.backlog,
                intruders: saved.intruders,
                program: saved.program,
            };
            self.open.insert(saved.id, listener);
        }
        self.inherited.clear();
        for SavedInherited { name, number, socket, options } in saved.inherited {
            let socket = from.descriptor(socket)?;
            self.inherited.push(InheritedSocket::restore(name, number, socket, options));
        }
        for (fd, listener) in saved.abandoned {
            self.abandoned.add(now, Abandoned::new(from.descriptor(fd)?, listener));
        }
        for number in watched {
            self.watch(number, true, poller)?;
        }
        Ok(())
    }
}
