//! Sockets that workers do not accept from although clients wait, and addresses that workers bind by
//! themselves: what is told about them.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use troop_core::WorkerId;
use troop_core::cluster::Unshared;
use troop_core::cluster::accepted::{Hindrances, Ignored};
use troop_core::text::tells_of_used_address;

use crate::activation::ActivationSocket;
use crate::event::Event;
use crate::primary::driver::Driver;
use crate::setup::Setup;

/// What may be wrong where workers have started other processes.
const BEHIND_SHELL: &str =
    "; LISTEN_PID is not the process that a shell or npm starts: see `troop exec-activated`";

/// Programs of which this is to be told: they start the program that is meant. Those of others are
/// rather workers of their own.
const LAUNCHERS: [&str; 28] = [
    "sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "busybox", "npm", "npx", "pnpm", "pnpx",
    "yarn", "yarnpkg", "bun", "bunx", "tsx", "nodemon", "uv", "uvx", "poetry", "pipenv", "pdm",
    "hatch", "rye", "make", "just", "sudo",
];

impl Driver {
    pub(in crate::primary::driver) fn tell_ignored(&mut self, ignored: &Ignored) {
        let setup = self.workers.setup();
        let Some(socket) = setup.activation().get(ignored.socket) else { return };
        self.events.push(Event::NotAccepted {
            address: socket.place(),
            waiting: ignored.waiting as usize,
            reason: reason(socket, ignored, is_launcher(setup)),
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
        let is_launched = is_launcher(self.workers.setup());
        Some(reason(own, &Ignored { waiting, ..ignored.clone() }, is_launched))
    }

    /// A worker that listens by itself may be why others end, or do not listen.
    pub(in crate::primary::driver) fn tell_not_shared(
        &mut self,
        other: Unshared,
        worker: WorkerId,
        address: String,
        has_children: bool,
    ) {
        let Some(handle) = self.workers.handle(worker).cloned() else { return };
        let (other, others) = match other {
            Unshared::Ended(ended) => {
                let last = self.listeners.last_ended.as_ref().filter(|(last, _)| *last == ended);
                let tail = last.and_then(|(_, tail)| tail.as_ref());
                let is_complete = tail.is_none_or(|tail| tail.has_ended());
                let last_words = tail.map(|tail| tail.text(Duration::ZERO));
                if last_words.is_some_and(|words| !tells_of_used_address(&words)) {
                    if !is_complete {
                        // The next one that ends says the same.
                        self.cluster.was_not_told();
                    }
                    return;
                }
                (None, String::new())
            }
            Unshared::Runs(other) => {
                let nowhere = format!(" (worker {other} listens nowhere)");
                (self.workers.handle(other).cloned(), nowhere)
            }
        };
        let given = match self.workers.setup().activation().first() {
            Some(own) => {
                let is_launched = has_children && is_launcher(self.workers.setup());
                let more = if is_launched { BEHIND_SHELL } else { "" };
                format!("it was given {} as fd 3 (LISTEN_FDS){more}", own.address())
            }
            None => format!(
                "start one worker, or let troop listen (-b {address}) if the program takes LISTEN_FDS"
            ),
        };
        self.events.push(Event::NotShared {
            reason: format!(
                "worker {worker} listens on {address} by itself, and others that do the same cannot{others}: {given}"
            ),
            worker: handle,
            other,
            address,
        });
    }
}

/// Whether workers are started by a program that starts another one.
fn is_launcher(setup: &Setup) -> bool {
    let name = setup.get_program().and_then(Path::file_name).and_then(OsStr::to_str);
    name.is_some_and(|name| LAUNCHERS.contains(&name))
}

fn reason(socket: &ActivationSocket, ignored: &Ignored, is_launched: bool) -> String {
    describe(socket.address(), socket.is_udp(), ignored, is_launched)
}

fn describe(address: &str, is_udp: bool, ignored: &Ignored, is_launched: bool) -> String {
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
    if *has_children && is_launched {
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
            describe("127.0.0.1:8405", false, &ignored, true),
            "3 connections wait on 127.0.0.1:8405 and no worker has accepted any: does the program take LISTEN_FDS? it was given fd 4"
        );
        ignored.hindrances.has_children = true;
        assert!(describe("x", false, &ignored, true).ends_with("see `troop exec-activated`"));
        // A server that starts workers is no shell.
        assert!(describe("x", false, &ignored, false).ends_with("it was given fd 4"));
        for (program, expected) in
            [("sh", true), ("/usr/bin/npm", true), ("granian", false), ("/srv/sh/web", false)]
        {
            assert_eq!(is_launcher(&Setup::new().program(program)), expected, "{program}");
        }
        ignored.waiting = 1;
        ignored.hindrances.listens = Some((WorkerId(2), "[::]:3000".into()));
        let text = describe("/run/web.sock", false, &ignored, true);
        assert!(text.starts_with("1 connection waits on /run/web.sock and"), "{text}");
        assert!(text.contains("; worker 2 listens on [::]:3000 by itself; LISTEN_PID"), "{text}");
    }
}
