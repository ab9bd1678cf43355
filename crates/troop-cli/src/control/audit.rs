//! Who asked for what through the control socket: a line of the log, and an event.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::net::unix::UCred;
use tokio::sync::broadcast;
use troop::event::signal_name;
use troop::text::escaped;

use super::protocol::Request;
use crate::config::LogFormat;
use crate::log;

/// The longest text about a client that is kept, in characters.
const MAX_TEXT: usize = 200;
/// The most events that wait for a client which follows them.
const MAX_QUEUED: usize = 64;

/// Tells of requests that change something.
#[derive(Debug)]
pub(super) struct Audit {
    format: LogFormat,
    followers: broadcast::Sender<Arc<Value>>,
}

impl Audit {
    pub(super) fn new(format: LogFormat) -> Audit {
        Audit { format, followers: broadcast::channel(MAX_QUEUED).0 }
    }

    /// Follows what is told from now on.
    pub(super) fn follow(&self) -> broadcast::Receiver<Arc<Value>> {
        self.followers.subscribe()
    }

    /// Tells of a request, if it is one that changes something. Returns whether it is.
    pub(super) fn note(
        &self,
        request: &Request,
        peer: Option<UCred>,
        on_behalf_of: Option<&str>,
    ) -> bool {
        let Some((verb, what)) = described(request) else { return false };
        let who = Who::of(peer, on_behalf_of);
        let text = format!("{} asked for: {what}", who.text());
        let event = log::own_event(
            "asked",
            json!({
                "verb": verb,
                "process": who.process,
                "user": who.user,
                "program": who.program,
                "on_behalf_of": who.on_behalf_of,
                "text": text,
            }),
        );
        log::own_line(self.format, &event);
        // Nobody may be following.
        let _ = self.followers.send(Arc::new(event));
        true
    }
}

/// A client.
struct Who {
    process: Option<i32>,
    user: Option<u32>,
    program: Option<String>,
    on_behalf_of: Option<String>,
}

impl Who {
    fn of(peer: Option<UCred>, on_behalf_of: Option<&str>) -> Who {
        // One in another PID namespace has none here.
        let process = peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let program = process.and_then(|pid| std::fs::read(format!("/proc/{pid}/comm")).ok());
        let bounded = |text: &str| format!("{:.1$}", escaped(text.trim_end()), MAX_TEXT);
        Who {
            process,
            user: peer.map(|peer| peer.uid()),
            program: program.map(|name| bounded(&String::from_utf8_lossy(&name))),
            on_behalf_of: on_behalf_of.map(bounded),
        }
    }

    fn text(&self) -> String {
        let mut text = match self.process {
            Some(pid) => format!("process {pid}"),
            None => "a process".into(),
        };
        if let Some(program) = &self.program {
            text.push_str(&format!(" ({program})"));
        }
        if let Some(user) = self.user {
            text.push_str(&format!(" of user {user}"));
        }
        if let Some(other) = &self.on_behalf_of {
            text.push_str(&format!(", for {other},"));
        }
        text
    }
}

/// Returns the verb of a request that changes something, and the request in words, without what it
/// may have of secrets. Input is the program's own affair.
fn described(request: &Request) -> Option<(&'static str, String)> {
    let of = |worker: &Option<u32>| match worker {
        Some(worker) => format!(" worker {worker}"),
        None => " all workers".into(),
    };
    let to = |path: &Option<PathBuf>| match path {
        Some(path) => format!(" to {:.1$}", escaped(&path.to_string_lossy()), MAX_TEXT),
        None => String::new(),
    };
    let (verb, more) = match request {
        Request::Snapshot
        | Request::Logs
        | Request::Events
        | Request::WorkerMetrics { .. }
        | Request::Input { .. } => return None,
        Request::Reload { worker, env, .. } => {
            let env = if env.is_some() { " with another environment" } else { "" };
            ("reload", format!("{}{env}", of(worker)))
        }
        Request::Restart { env: Some(_) } => ("restart", " with another environment".into()),
        Request::Restart { env: None } => ("restart", String::new()),
        Request::Upgrade { path } => ("upgrade", to(path)),
        Request::UpgradeKeeper { path } => ("upgrade", format!(" of the keeper{}", to(path))),
        Request::Scale { workers: Some(workers), .. } => ("scale", format!(" to {workers}")),
        Request::Scale { workers: None, by, .. } => ("scale", format!(" by {by:+}")),
        Request::Stop { quick, forget } => {
            let quick = if *quick { " at once" } else { "" };
            let forget = if *forget { " and forget it" } else { "" };
            ("stop", format!("{quick}{forget}"))
        }
        Request::Schedule { listener, policy } => {
            let at = listener.as_deref().unwrap_or("all listeners");
            let (at, policy) = (escaped(at), escaped(policy));
            ("policy", format!(" {policy:.MAX_TEXT$} for {at:.MAX_TEXT$}"))
        }
        Request::Signal { signal, worker } => {
            let name = signal_name(*signal).map_or_else(|| signal.to_string(), str::to_owned);
            ("signal", format!(" {name} to{}", of(worker)))
        }
        Request::Send { worker, .. } => ("send", format!(" a message to{}", of(worker))),
        Request::Reset => ("reset", String::new()),
    };
    Some((verb, format!("{verb}{more}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_is_described_without_what_it_carries() {
        for (line, expected) in [
            (r#"{"do":"snapshot"}"#, None),
            (r#"{"do":"events"}"#, None),
            (r#"{"do":"reload"}"#, Some("reload all workers")),
            (
                r#"{"do":"reload","worker":3,"env":[["TOKEN","secret"]]}"#,
                Some("reload worker 3 with another environment"),
            ),
            (r#"{"do":"scale","workers":4}"#, Some("scale to 4")),
            (r#"{"do":"scale","workers":null,"by":-1}"#, Some("scale by -1")),
            (r#"{"do":"stop","quick":true}"#, Some("stop at once")),
            (r#"{"do":"signal","signal":15,"worker":null}"#, Some("signal SIGTERM to all workers")),
            (r#"{"do":"send","message":"secret","worker":2}"#, Some("send a message to worker 2")),
            (
                r#"{"do":"schedule","listener":"\u001b[2J","policy":"p2c"}"#,
                Some(r"policy p2c for \x1b[2J"),
            ),
        ] {
            let request: Request = serde_json::from_str(line).unwrap();
            let words = described(&request).map(|(_, words)| words);
            assert_eq!(words.as_deref(), expected, "{line}");
        }
    }
}
