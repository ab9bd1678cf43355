//! Programs that end because their address is in use, or because they look for their sockets at the
//! wrong descriptor: says whose the address is, where that is troop's own, and which they are.

use std::time::Duration;

use troop::text::tells_of_used_address;
use troop::{Event, WorkerHandle};

/// Failures after which a foreground app is told what may be wrong.
const FAILURES: u32 = 2;

/// Signs in a program's words that a descriptor is no socket, or not open.
const NO_SOCKET: [&str; 4] = ["non-socket", "ENOTSOCK", "ad file descriptor", "EBADF"];

/// Adds what to do about an address that is in use, or about programs that end as if all was well, where
/// a text is about that and does not say it yet.
pub(crate) fn with_tip(mut text: String) -> String {
    if text.contains("\ntip: ") {
        return text;
    }
    let is_end =
        |line: &str| line.contains("giving up: no worker") && line.contains("with exit code 0");
    if text.lines().next().is_some_and(is_end) {
        text.push_str(
            "\ntip: a program that puts itself into the background (--daemon) must stay in the foreground here; \
             one that is to end and not to run again is started with --restart never",
        );
    } else if tells_of_used_address(&text) {
        text.push_str(
            "\ntip: another process has this address (`ss -ltnp` shows it, `troop ls` shows apps); \
             workers of a program that binds its port past troop are in each other's way: see --bind",
        );
    }
    text
}

/// The sockets of `bind`, which programs must not bind again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bound {
    /// The addresses, in the order of their descriptors.
    addresses: Vec<String>,
}

impl Bound {
    pub(crate) fn new(addresses: Vec<String>) -> Bound {
        Bound { addresses }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Says that an address that a program cannot have is troop's own, or which descriptors the
    /// sockets are, if the program's words are about that.
    pub(crate) fn explain(&self, words: &str) -> Option<String> {
        if !self.addresses.is_empty() && NO_SOCKET.iter().any(|sign| words.contains(sign)) {
            let sockets = self.addresses.iter().zip(3..);
            let sockets: Vec<_> = sockets.map(|(at, fd)| format!("fd {fd} is {at}")).collect();
            return Some(format!(
                "of the sockets of -b, {}; {{fd}} in the program's arguments becomes the number of the first one",
                sockets.join(", ")
            ));
        }
        if !tells_of_used_address(words) {
            return None;
        }
        if let Some(at) = self.named(words) {
            return Some(self.own(at));
        }
        let is_unnamed = !self.addresses.is_empty() && !names_an_address(words);
        is_unnamed.then(|| format!("if that is the address of -b: {}", self.own(0)))
    }

    /// Whether a program's words say that one of the addresses is in use, or name none at all.
    pub(crate) fn is_meant(&self, words: &str) -> bool {
        tells_of_used_address(words) && self.explain(words).is_some()
    }

    /// Whether they name one where they say that it is in use: programs name their port elsewhere, too.
    pub(crate) fn is_named(&self, words: &str) -> bool {
        words.lines().any(|line| tells_of_used_address(line) && self.named(line).is_some())
    }

    /// The same as [`is_meant`](Bound::is_meant) of a worker that runs: one that names no address and
    /// says more after that, goes on without it.
    pub(crate) fn is_waited_for(&self, words: &str) -> bool {
        let is_own = |line: &&str| !line.is_empty() && !line.starts_with([' ', '\t', '}']);
        let is_last = || words.lines().rfind(is_own).is_some_and(tells_of_used_address);
        self.is_meant(words) && (self.is_named(words) || is_last())
    }

    fn named(&self, words: &str) -> Option<usize> {
        self.addresses.iter().position(|address| names(words, address))
    }

    fn own(&self, at: usize) -> String {
        format!(
            "{} is troop's own (-b): the program must not bind it, but take the socket that it was given as fd {} (LISTEN_FDS)",
            self.addresses[at],
            at + 3
        )
    }
}

/// Whether a text names an address: its path or its port.
fn names(words: &str, address: &str) -> bool {
    match address.rsplit_once(':').map(|(_, port)| port) {
        Some(port) if port.parse::<u16>().is_ok() => {
            words.split(|c: char| !c.is_ascii_digit()).any(|number| number == port)
        }
        _ => words.contains(address),
    }
}

/// Whether a text that tells of an address in use names it.
fn names_an_address(words: &str) -> bool {
    words.lines().filter(|line| tells_of_used_address(line)).any(|line| {
        let mut parts =
            line.split(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '(' | ':'));
        names_a_port(line) || parts.any(|part| part.starts_with('/'))
    })
}

/// Whether a text names any port, as in `:::8000`, `('127.0.0.1', 8000)` and `port 8000`.
fn names_a_port(words: &str) -> bool {
    let is_port = |(at, _): (usize, &str)| {
        let (before, number) = words.split_at(at);
        let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        let is_introduced =
            [":", "', ", "port ", "Port "].iter().any(|sign| before.ends_with(sign));
        // Shorter numbers after a colon are minutes and seconds.
        is_introduced && digits >= 3
    };
    words.match_indices(|c: char| c.is_ascii_digit()).any(is_port)
}

/// Sees workers fail, and says once that the address which they bind is troop's own.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    bound: Bound,
    failed: Option<WorkerHandle>,
    count: u32,
}

impl Failures {
    pub(crate) fn new(bound: Bound) -> Failures {
        Failures { bound, ..Failures::default() }
    }

    /// Handles an event. Returns what to say.
    pub(crate) fn note(&mut self, event: &Event) -> Option<String> {
        let Event::Exit { worker, exit, .. } = event else { return None };
        if exit.is_success()
            || worker.exited_after_disconnect() == Some(true)
            || self.bound.addresses.is_empty()
            || self.count >= FAILURES
        {
            return None;
        }
        self.count += 1;
        // The words of the one before are complete.
        let before = self.failed.replace(worker.clone())?;
        match before.last_stderr(Duration::ZERO) {
            Some(words) => self.bound.explain(&words),
            None => Some(format!("if its address is in use: {}", self.bound.own(0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_troop_has_itself_is_told_from_others() {
        let bound =
            Bound::new(vec!["127.0.0.1:8405".into(), "[::]:80".into(), "/run/a.sock".into()]);
        for (words, fd) in [
            ("Address already in use\nPort 8405 is in use by another program.", 3),
            (
                "[Errno 98] error while attempting to bind on address ('127.0.0.1', 8405): address already in use",
                3,
            ),
            ("Error: listen EADDRINUSE: address already in use :::80", 4),
            ("listen unix /run/a.sock: bind: address already in use", 5),
        ] {
            let told = bound.explain(words).unwrap_or_default();
            assert!(told.contains(&format!("as fd {fd} (")), "{words}: {told}");
            let text = format!("{words}\ntip: {told}");
            assert_eq!(with_tip(text.clone()), text);
        }
        for words in ["[Errno 98] Address already in use", "04:15:53 [4711] Connection in use"] {
            let told = bound.explain(words).unwrap_or_default();
            assert!(told.starts_with("if that is the address of -b: 127.0.0.1:8405 is"), "{told}");
            assert!(bound.is_meant(words) && !Bound::default().is_meant(words));
            assert!(bound.is_waited_for(words) && !bound.is_named(words));
        }
        // Another port than that of the app, which goes on without it.
        let metrics = "listens on 8405 soon\nmetrics: Address already in use";
        assert!(bound.is_meant(metrics) && !bound.is_named(metrics));
        assert!(bound.is_waited_for(&format!("{metrics}\n    at listen (server.js:1)\n")));
        assert!(!bound.is_waited_for(&format!("{metrics}\nloads the model")));
        for words in [
            "Address already in use: ('127.0.0.1', 9000)",
            "Port 9000 is in use",
            "listen unix /run/other.sock: bind: address already in use",
            "bind('/run/ctl'): Address already in use\n  File \"app.py\", line 3",
        ] {
            assert_eq!(bound.explain(words), None, "{words}");
        }
        for words in ["port 8405 is fine", "EADDRINUSE: address already in use :::18405", ""] {
            assert_eq!(bound.explain(words), None, "{words}");
        }
        let wrong = "OSError: [Errno 88] Socket operation on non-socket";
        let told = bound.explain(wrong).unwrap_or_default();
        assert!(told.contains("fd 3 is 127.0.0.1:8405, fd 4 is [::]:80, fd 5"), "{told}");
        assert_eq!(Bound::default().explain(wrong), None);
        assert!(with_tip("EADDRINUSE".into()).contains("another process"));
        assert_eq!(with_tip("fine".into()), "fine");
    }
}
