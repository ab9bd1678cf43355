//! The client side of control sockets.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use troop::text::escaped;

use super::protocol::{
    ANSWER_TIMEOUT, Answer, AppSnapshot, Envelope, Failure, MAX_REQUEST, Request, UNKEPT, VERSION,
};
use super::sockets;
use crate::error::CliError;
use crate::log;
use crate::records::listed;

/// Time that an upgrade may take: what is under way, the other engine, and leaving the app to it have
/// five seconds each.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time after which an unused connection is replaced. The primary closes connections without a
/// request after 10 s; those of `reload all` wait for their turn.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// Time in which a request to restart is answered: the primary reads the configuration and tries the
/// program first, for which there are limits of their own.
const CHECKED_WITHIN: Duration = Duration::from_secs(40);

/// Interval between attempts to connect to an app whose queue of clients is full.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The variable that says for whom this process asks, if not for its own user.
pub(crate) const BEHALF_VARIABLE: &str = "TROOP_ON_BEHALF_OF";

/// How often a request is sent whose app goes on with another process each time.
const MAX_TRIES: usize = 100;

/// A connection to an app.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    /// `None` while the app's queue of clients is full.
    stream: Option<BufReader<UnixStream>>,
    /// When this connection was last used.
    used: Instant,
}

impl Client {
    /// Returns the app's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Connects to an app, without waiting for it: one whose queue of clients is full is connected to
    /// by the first request. Returns `None` if no app of this name runs.
    pub(crate) fn connect(name: &str) -> Result<Option<Client>, CliError> {
        let doing = |e| CliError::Io(format!("connect to {name}"), e);
        let client = |stream: Option<UnixStream>| Client {
            name: name.to_owned(),
            stream: stream.map(BufReader::new),
            used: Instant::now(),
        };
        match stream_to(name) {
            Ok(stream) => Ok(Some(client(Some(stream)))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Some(client(None))),
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
        mut each: impl FnMut(&Value),
    ) -> Result<Value, CliError> {
        let timeout = timeout_of(&request);
        if !matches!(request, Request::Events) {
            return self.request_within(request, timeout, each);
        }
        loop {
            match self.request_within(Request::Events, timeout, &mut each) {
                // Another process may go on with the app: its socket stays meanwhile.
                Err(CliError::Failed(failure)) if failure.kind == "over" => {
                    match Client::connect(&self.name)? {
                        Some(client) => *self = client,
                        None => return Err(CliError::Failed(failure)),
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Sends a request that may come twice, until it is answered: if the process that was asked is killed
    /// before, another one may go on with the app. Returns `None` if the app has ended.
    pub(crate) fn request_until_answered(
        &mut self,
        request: &Request,
    ) -> Result<Option<Value>, CliError> {
        for _ in 0..MAX_TRIES {
            match self.request(request.clone(), |_| {}) {
                Err(CliError::Failed(failure)) if failure.kind == "over" => {}
                answer => return answer.map(Some),
            }
            std::thread::sleep(RETRY_INTERVAL);
            match Client::connect(&self.name)? {
                Some(client) => *self = client,
                None => return Ok(None),
            }
        }
        Err(over(&self.name))
    }

    /// Sends a request whose answer must begin within a time.
    fn request_within(
        &mut self,
        request: Request,
        timeout: Option<Duration>,
        each: impl FnMut(&Value),
    ) -> Result<Value, CliError> {
        if self.used.elapsed() > STALE_AFTER {
            let ended =
                || CliError::Failed(Failure::new("over", format!("{} has ended", self.name)));
            *self = Client::connect(&self.name)?.ok_or_else(ended)?;
        }
        let answer = self.talk(request, timeout, each);
        self.used = Instant::now();
        answer
    }

    /// Connects if that has not been possible yet, and returns the connection.
    fn stream(&mut self, within: Duration) -> io::Result<&mut BufReader<UnixStream>> {
        let until = Instant::now() + within;
        while self.stream.is_none() {
            match stream_to(&self.name) {
                Ok(stream) => self.stream = Some(BufReader::new(stream)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(RETRY_INTERVAL);
                }
                Err(e) => return Err(e),
            }
        }
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn talk(
        &mut self,
        request: Request,
        timeout: Option<Duration>,
        mut each: impl FnMut(&Value),
    ) -> Result<Value, CliError> {
        let name = self.name.clone();
        let begins_within = timeout.unwrap_or(ANSWER_TIMEOUT);
        let doing =
            |e: io::Error| CliError::Io(format!("talk to {name}"), unanswered(e, begins_within));
        let on_behalf_of = std::env::var(BEHALF_VARIABLE).ok();
        let mut line = serde_json::to_vec(&Envelope { troop: VERSION, on_behalf_of, request })
            .map_err(|e| doing(e.into()))?;
        if line.len() > MAX_REQUEST {
            return Err(CliError::Usage(format!(
                "the request to {name} has {} bytes, and may have {MAX_REQUEST}: a message or the environment is too long",
                line.len()
            )));
        }
        line.push(b'\n');
        let stream = self.stream(begins_within).map_err(doing)?;
        stream.get_mut().set_read_timeout(timeout).map_err(doing)?;
        stream.get_mut().set_write_timeout(Some(begins_within)).map_err(doing)?;
        match stream.get_mut().write_all(&line) {
            Err(e) if is_gone(&e) => return Err(over(&name)),
            written => written.map_err(doing)?,
        }
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line) {
                Ok(0) => return Err(over(&name)),
                Err(e) if is_gone(&e) => return Err(over(&name)),
                read => drop(read.map_err(doing)?),
            }
            match serde_json::from_str(&line).map_err(|e| doing(e.into()))? {
                Answer::Event(event) => each(&event),
                Answer::Done(value) => {
                    if let Some(why) = value[UNKEPT].as_str() {
                        log::line(&format!("troop: {name}: {}", escaped(why)));
                    }
                    return Ok(value);
                }
                Answer::Failed(failure) => return Err(CliError::Failed(failure)),
            }
        }
    }

    /// Returns the app's snapshot, that of the process that goes on with it if one is killed.
    pub(crate) fn last_snapshot(&mut self) -> Result<AppSnapshot, CliError> {
        let value = self.request_until_answered(&Request::Snapshot)?;
        let value = value.ok_or_else(|| CliError::NoApp(format!("{} has ended", self.name)))?;
        self.understood(value)
    }

    fn understood(&self, value: Value) -> Result<AppSnapshot, CliError> {
        serde_json::from_value(value)
            .map_err(|e| CliError::Io(format!("understand {}", self.name), e.into()))
    }

    pub(crate) fn snapshot(&mut self) -> Result<AppSnapshot, CliError> {
        self.snapshot_within(ANSWER_TIMEOUT)
    }

    /// Returns the app's snapshot, unless it does not answer in that time; that of the process that goes
    /// on with it if one is killed.
    pub(crate) fn snapshot_within(&mut self, time: Duration) -> Result<AppSnapshot, CliError> {
        let until = Instant::now() + time;
        let mut answer = self.request_within(Request::Snapshot, Some(time), |_| {});
        while matches!(&answer, Err(CliError::Failed(failure)) if failure.kind == "over")
            && Instant::now() < until
        {
            std::thread::sleep(RETRY_INTERVAL);
            let Some(client) = Client::connect(&self.name)? else { break };
            *self = client;
            answer = self.request_within(Request::Snapshot, Some(time), |_| {});
        }
        self.understood(answer?)
    }

    /// Waits until the app's process has ended.
    pub(crate) fn wait_for_end(&mut self) {
        // The process holds the connection until it ends.
        let Some(stream) = &mut self.stream else { return };
        let _ = stream.get_mut().set_read_timeout(None);
        let _ = io::copy(stream, &mut io::sink());
    }
}

/// Whether the process at the other end of a connection has ended.
fn is_gone(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// The error for a request to a process that has ended since.
fn over(name: &str) -> CliError {
    let text = match Client::connect(name) {
        Ok(Some(_)) => format!(
            "{name}: the process that was asked has ended before it could answer; whether it has done it, and whether another one goes on with the app, is not known: see `troop show {name}`"
        ),
        _ => format!("{name} has ended"),
    };
    CliError::Failed(Failure::new("over", text))
}

/// Says of an error that a time was over.
fn unanswered(e: io::Error, within: Duration) -> io::Error {
    if e.kind() != io::ErrorKind::WouldBlock {
        return e;
    }
    let text = format!("there is no answer within {} s; is its process stopped?", within.as_secs());
    io::Error::new(e.kind(), text)
}

/// Returns the time in which a request must be answered. `None` where the primary sets the deadline,
/// or there is none.
fn timeout_of(request: &Request) -> Option<Duration> {
    match request {
        Request::Upgrade { .. } | Request::UpgradeKeeper { .. } => Some(UPGRADE_TIMEOUT),
        Request::Reload { .. } | Request::Events | Request::Scale { wait: true, .. } => None,
        Request::Send { wait_ms: Some(wait), .. } => {
            Some(ANSWER_TIMEOUT.saturating_add(Duration::from_millis(*wait)))
        }
        Request::WorkerMetrics { wait_ms } => {
            Some(ANSWER_TIMEOUT.saturating_add(Duration::from_millis(*wait_ms)))
        }
        Request::Restart { .. } => Some(CHECKED_WITHIN),
        _ => Some(ANSWER_TIMEOUT),
    }
}

/// Parses the name of an app, or of one worker of it: `web:3`.
pub(crate) fn target(text: Option<&str>) -> Result<(Option<&str>, Option<u32>), CliError> {
    match text.and_then(|text| text.split_once(':')) {
        None => Ok((text, None)),
        Some((app, number)) => match number.parse() {
            Ok(number) => Ok((Some(app).filter(|app| !app.is_empty()), Some(number))),
            Err(_) if number == "*" => Err(CliError::Usage(format!(
                "{app}:*: an app's name alone is for all of its workers, and a namespace for all apps that have it: {app}"
            ))),
            Err(_) => Err(CliError::Usage(format!(
                "{number:?} must be a worker's number, as `troop show` has them"
            ))),
        },
    }
}

/// Connects to an app without waiting.
pub(crate) fn stream_to(name: &str) -> io::Result<UnixStream> {
    sockets::connect(name).or_else(|e| match e.kind() {
        io::ErrorKind::WouldBlock => Err(e),
        _ => elsewhere(name).unwrap_or(Err(e)),
    })
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

    #[test]
    fn a_restart_is_waited_for_while_a_slow_configuration_is_read_and_the_program_tried() {
        // Twelve seconds for the configuration, ten for the program.
        let deadline = timeout_of(&Request::Restart { env: None });
        assert!(deadline > Some(ANSWER_TIMEOUT + Duration::from_secs(12 + 10)), "{deadline:?}");
        // The error says how long was waited.
        let error = unanswered(io::ErrorKind::WouldBlock.into(), CHECKED_WITHIN);
        let error = CliError::Io("talk to web".into(), error).to_string();
        assert_eq!(error, "talk to web: there is no answer within 40 s; is its process stopped?");
    }
}
