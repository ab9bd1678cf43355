//! Sockets that workers do not accept from although clients wait, and addresses that workers bind by
//! themselves: what is told about them.

use std::time::Duration;

use troop_core::WorkerId;
use troop_core::cluster::accepted::{Hindrances, Ignored};
use troop_core::text::tells_of_used_address;

use crate::activation::ActivationSocket;
use crate::event::Event;
use crate::primary::driver::Driver;

/// What may be wrong where workers have started other processes.
const BEHIND_SHELL: &str =
    "; LISTEN_PID is not the process that a shell or npm starts: see `troop exec-activated`";

impl Driver {
    pub(in crate::primary::driver) fn tell_ignored(&mut self, ignored: &Ignored) {
        let setup = self.workers.setup();
        let Some(socket) = setup.activation().get(ignored.socket) else { return };
        self.events.push(Event::NotAccepted {
            address: socket.place(),
            waiting: ignored.waiting as usize,
            reason: reason(socket, ignored),
        });
    }

    pub(in crate::primary::driver) fn tell_served(&mut self, socket: usize) {
        let setup = self.workers.setup();
        let Some(socket) = setup.activation().get(socket) else { return };
        let reason = "a worker accepts its connections".into();
        self.events.push(Event::ListenerRestored { address: socket.place(), reason });
    }

    /// Why no worker accepts from an activated socket, if that is so.
    pub(in crate::primary::driver) fn why_ignored(&self, socket: usize) -> Option<String> {
        let ignored = self.cluster.ignored_sockets().find(|ignored| ignored.socket == socket)?;
        let own = self.workers.setup().activation().get(socket)?;
        // As many as there are now.
        let waiting = u32::try_from(own.waiting()).unwrap_or(u32::MAX);
        let waiting = ignored.waiting.max(waiting).max(self.cluster.waited(socket));
        Some(reason(own, &Ignored { waiting, ..ignored.clone() }))
    }

    /// A worker that listens by itself may be why others end.
    pub(in crate::primary::driver) fn tell_not_shared(
        &mut self,
        ended: WorkerId,
        worker: WorkerId,
        address: String,
        has_children: bool,
    ) {
        let last = self.listeners.last_ended.as_ref().filter(|(last, _)| *last == ended);
        let tail = last.and_then(|(_, tail)| tail.as_ref());
        let last_words = tail.map(|tail| tail.text(Duration::ZERO));
        let Some(handle) = self.workers.handle(worker).cloned() else { return };
        if last_words.is_some_and(|words| !tells_of_used_address(&words)) {
            return;
        }
        let given = match self.workers.setup().activation().first() {
            Some(own) => {
                let more = if has_children { BEHIND_SHELL } else { "" };
                format!("it was given {} as fd 3 (LISTEN_FDS){more}", own.address())
            }
            None => format!(
                "start one worker, or let troop listen (-b {address}) if the program takes LISTEN_FDS"
            ),
        };
        self.events.push(Event::NotShared {
            reason: format!(
                "worker {worker} listens on {address} by itself, and others that do the same cannot: {given}"
            ),
            worker: handle,
            address,
        });
    }
}

fn reason(socket: &ActivationSocket, ignored: &Ignored) -> String {
    describe(socket.address(), socket.is_udp(), ignored)
}

fn describe(address: &str, is_udp: bool, ignored: &Ignored) -> String {
    let Ignored { socket, waiting, hindrances: Hindrances { listens, has_children } } = ignored;
    let who = match (is_udp, waiting) {
        (true, _) => "datagrams wait".to_owned(),
        (false, 1) => "1 connection waits".to_owned(),
        (false, waiting) => format!("{waiting} connections wait"),
    };
    let any = if is_udp { "received" } else { "accepted" };
    let scheme = if is_udp { "udp:" } else { "" };
    let mut text = format!(
        "{who} on {scheme}{address} and no worker has {any} any: does the program take LISTEN_FDS? it was given fd {}",
        socket + 3
    );
    if let Some((worker, at)) = listens {
        text.push_str(&format!("; worker {worker} listens on {at} by itself"));
    }
    if *has_children {
        text.push_str(BEHIND_SHELL);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_names_the_descriptor_and_what_the_program_does_instead() {
        let mut ignored = Ignored { socket: 1, waiting: 3, hindrances: Hindrances::default() };
        assert_eq!(
            describe("127.0.0.1:8405", false, &ignored),
            "3 connections wait on 127.0.0.1:8405 and no worker has accepted any: does the program take LISTEN_FDS? it was given fd 4"
        );
        ignored.hindrances.has_children = true;
        assert!(describe("x", false, &ignored).ends_with("see `troop exec-activated`"));
        ignored.waiting = 1;
        ignored.hindrances.listens = Some((WorkerId(2), "[::]:3000".into()));
        let text = describe("/run/web.sock", false, &ignored);
        assert!(text.starts_with("1 connection waits on /run/web.sock and"), "{text}");
        assert!(text.contains("; worker 2 listens on [::]:3000 by itself; LISTEN_PID"), "{text}");
    }
}
