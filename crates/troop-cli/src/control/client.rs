//! The client side of control sockets.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::protocol::{ANSWER_TIMEOUT, Answer, AppSnapshot, Envelope, Failure, Request, VERSION};
use super::sockets;
use crate::error::CliError;
use crate::records::listed;

/// Time after which an unused connection is replaced. The primary closes connections without a
/// request after 10 s; those of `reload all` wait for their turn.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// A connection to an app.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    stream: BufReader<UnixStream>,
    /// When this connection was last used.
    used: Instant,
}

impl Client {
    /// Returns the app's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Connects to an app. Returns `None` if no app of this name runs.
    pub(crate) fn connect(name: &str) -> Result<Option<Client>, CliError> {
        let doing = |e| CliError::Io(format!("connect to {name}"), e);
        match sockets::connect(name).or_else(|e| elsewhere(name).unwrap_or(Err(e))) {
            Ok(stream) => Ok(Some(Client {
                name: name.to_owned(),
                stream: BufReader::new(stream),
                used: Instant::now(),
            })),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(doing(e)),
        }
    }

    /// Sends a request, passes each event to `each`, and returns the answer.
    pub(crate) fn request(
        &mut self,
        request: Request,
        each: impl FnMut(&Value),
    ) -> Result<Value, CliError> {
        if self.used.elapsed() > STALE_AFTER {
            let ended =
                || CliError::Failed(Failure::new("over", format!("{} has ended", self.name)));
            *self = Client::connect(&self.name)?.ok_or_else(ended)?;
        }
        let answer = self.talk(request, each);
        self.used = Instant::now();
        answer
    }

    fn talk(&mut self, request: Request, mut each: impl FnMut(&Value)) -> Result<Value, CliError> {
        let doing = |e| CliError::Io(format!("talk to {}", self.name), e);
        let mut line = serde_json::to_vec(&Envelope { troop: VERSION, request: request.clone() })
            .map_err(|e| doing(e.into()))?;
        line.push(b'\n');
        self.stream.get_mut().set_read_timeout(timeout_of(&request)).map_err(doing)?;
        self.stream.get_mut().write_all(&line).map_err(doing)?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).map_err(doing)? == 0 {
                return Err(CliError::Failed(Failure::new(
                    "over",
                    format!("{} has ended", self.name),
                )));
            }
            match serde_json::from_str(&line).map_err(|e| doing(e.into()))? {
                Answer::Event(event) => each(&event),
                Answer::Done(value) => return Ok(value),
                Answer::Failed(failure) => return Err(CliError::Failed(failure)),
            }
        }
    }

    pub(crate) fn snapshot(&mut self) -> Result<AppSnapshot, CliError> {
        let value = self.request(Request::Snapshot, |_| {})?;
        serde_json::from_value(value)
            .map_err(|e| CliError::Io(format!("understand {}", self.name), e.into()))
    }

    /// Waits until the app's process has ended.
    pub(crate) fn wait_for_end(&mut self) {
        // The process holds the connection until it ends.
        let _ = self.stream.get_mut().set_read_timeout(None);
        let _ = io::copy(&mut self.stream, &mut io::sink());
    }
}

/// Returns the time in which a request must be answered. `None` where the primary sets the deadline,
/// or there is none.
fn timeout_of(request: &Request) -> Option<Duration> {
    match request {
        Request::Reload { .. } | Request::Events | Request::Scale { wait: true, .. } => None,
        Request::Send { wait_ms: Some(wait), .. } => {
            Some(ANSWER_TIMEOUT.saturating_add(Duration::from_millis(*wait)))
        }
        _ => Some(ANSWER_TIMEOUT),
    }
}

/// Parses the name of an app, or of one worker of it: `web:3`.
pub(crate) fn target(text: Option<&str>) -> Result<(Option<&str>, Option<u32>), CliError> {
    match text.and_then(|text| text.split_once(':')) {
        None => Ok((text, None)),
        Some((app, number)) => match number.parse() {
            Ok(number) => Ok((Some(app).filter(|app| !app.is_empty()), Some(number))),
            Err(_) => Err(CliError::Usage(format!(
                "{number:?} must be a worker's number, as `troop show` has them"
            ))),
        },
    }
}

/// Connects to an app whose control socket is in another directory, as its record says: it was
/// started in another session, for example.
fn elsewhere(name: &str) -> Option<io::Result<UnixStream>> {
    let record = listed::of(name).filter(|app| app.end.is_none())?.record;
    let is_here = sockets::path().canonicalize().is_ok_and(|path| path == record.runtime);
    (!is_here).then(|| sockets::connect_in(&record.runtime, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_of_a_request_includes_the_time_to_wait_for_replies() {
        let request = |wait_ms| Request::Send { message: Value::Null, worker: None, wait_ms };
        assert_eq!(timeout_of(&request(None)), Some(ANSWER_TIMEOUT));
        assert!(timeout_of(&request(Some(30_000))) > Some(Duration::from_secs(30)));
    }
}
