//! Events as lines on standard error or in the logs: sentences or JSON.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};
use troop::event::{Address, Consequence, ExitHow, signal_name};
use troop::supervise::{Cause, GiveUp, Progress};
use troop::{Event, WorkerHandle, text};

use crate::config::{Form, LogFormat};
use crate::logs::line::Origin;
use crate::logs::writer::{LogQueue, Sink};

/// The prefix of quoted lines of workers, so that none passes for a line of troop.
pub(crate) const QUOTE: &str = "  | ";

/// Returns the prefix of the primary's own lines on standard error.
fn prefix() -> &'static str {
    let coloured = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    if coloured { "\x1b[2mtroop\x1b[0m " } else { "troop " }
}

/// Writes events.
pub(crate) struct Log {
    format: LogFormat,
    /// Lines go to the logs instead of standard error.
    to_logs: bool,
    /// The queue of lines. `None` while its thread cannot be started; lines are then written
    /// directly.
    queue: Option<Arc<LogQueue>>,
    prefix: &'static str,
}

impl Log {
    /// Returns a log that writes to the app's logs.
    pub(crate) fn to_logs(logs: Arc<LogQueue>, format: LogFormat) -> Log {
        Log { format, to_logs: true, queue: Some(logs), prefix: "" }
    }

    /// Returns a log that writes to standard error by a queue. From now on nothing waits for a slow
    /// reader: neither events nor [`line`].
    pub(crate) fn foreground(format: LogFormat) -> Log {
        let mut log = Log { format, to_logs: false, queue: None, prefix: prefix() };
        log.start();
        log
    }

    fn start(&mut self) {
        // The system may be short of processes and threads. The next line tries again.
        self.queue = LogQueue::start(Sink::Own(self.format), Form::Plain).ok();
        *LINE_SINK.lock().unwrap_or_else(PoisonError::into_inner) =
            self.queue.clone().map(LineSink::Stderr);
    }

    pub(crate) fn event(&mut self, event: &Event) {
        let line = match (self.format, event) {
            // Settings are known from the command line, and messages are not for people.
            (
                LogFormat::Human,
                Event::Setup { .. } | Event::Message { .. } | Event::Request { .. },
            ) => return,
            (LogFormat::Human, event) if self.to_logs => event.to_string(),
            (LogFormat::Human, event) => format!("{}{event}", self.prefix),
            (LogFormat::Json, event) => text::json(as_json(event).to_string()),
        };
        if self.queue.is_none() {
            self.start();
        }
        match &self.queue {
            Some(queue) => queue.lines().push(Origin::Event, line.as_bytes()),
            None => drop(writeln!(std::io::stderr().lock(), "{line}")),
        }
    }
}

/// The queue that lines go to.
#[derive(Debug)]
enum LineSink {
    /// The app's logs.
    Logs(Arc<LogQueue>),
    Stderr(Arc<LogQueue>),
}

/// The destination of lines. Without one they are written to standard error directly, which may
/// block.
static LINE_SINK: Mutex<Option<LineSink>> = Mutex::new(None);

/// Sends all further lines to the app's logs.
pub(crate) fn send_lines_to(queue: Arc<LogQueue>) {
    *LINE_SINK.lock().unwrap_or_else(PoisonError::into_inner) = Some(LineSink::Logs(queue));
}

/// Waits until queued lines are written, with a deadline.
pub(crate) fn finish() {
    // The lock is released first: the thread that writes may have lines of its own.
    let to = LINE_SINK.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(LineSink::Logs(queue) | LineSink::Stderr(queue)) = to {
        queue.finish();
    }
}

/// Writes lines to standard error or to the logs, escaped. Failures are ignored.
pub(crate) fn line(line: &str) {
    match &*LINE_SINK.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(LineSink::Logs(queue)) => {
            queue.lines().push(
                Origin::Event,
                text::lines(line.trim_start_matches("troop: "), "").as_bytes(),
            );
        }
        Some(LineSink::Stderr(queue)) => {
            queue.lines().push(Origin::Event, text::lines(line, "").as_bytes())
        }
        None => drop(writeln!(std::io::stderr().lock(), "{}", text::lines(line, ""))),
    }
}

/// Returns an event of the program itself, in the form of those of the engine.
pub(crate) fn own_event(name: &str, mut fields: Value) -> Value {
    if let Value::Object(fields) = &mut fields {
        fields.retain(|_, value| !value.is_null());
        fields.insert("time_ms".into(), millis().into());
        fields.insert("event".into(), name.into());
    }
    fields
}

/// Writes an event of the program itself, as [`line()`] does.
pub(crate) fn own_line(format: LogFormat, event: &Value) {
    match format {
        LogFormat::Human => line(&format!("troop: {}", event["text"].as_str().unwrap_or_default())),
        LogFormat::Json => line(&text::json(event.to_string())),
    }
}

/// Returns the line that reports dropped lines on standard error.
pub(crate) fn dropped(format: LogFormat, lines: u64) -> String {
    let text = format!("{lines} lines were dropped here: standard error was not read");
    match format {
        LogFormat::Human => format!("{}{text}", prefix()),
        LogFormat::Json => {
            json!({ "time_ms": millis(), "event": "lines-dropped", "dropped": lines, "text": text })
                .to_string()
        }
    }
}

fn millis() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
}

/// Returns the name of an event in JSON.
pub(crate) fn name(event: &Event) -> &'static str {
    match event {
        Event::Setup { .. } => "setup",
        Event::Fork { .. } => "fork",
        Event::Online { .. } => "online",
        Event::Listening { .. } => "listening",
        Event::Message { .. } => "message",
        Event::Disconnect { .. } => "disconnect",
        Event::Exit { .. } => "exit",
        Event::Error { .. } => "error",
        Event::Request { .. } => "request",
        Event::Misbehaved { .. } => "misbehaved",
        Event::Stalled { .. } => "stalled",
        Event::Resumed { .. } => "resumed",
        Event::NotSteered { .. } => "not-steered",
        Event::ModeChanged { .. } => "mode-changed",
        Event::ListenerClosed { .. } => "listener-closed",
        Event::ListenerRestored { .. } => "listener-restored",
        Event::ListenerLost { .. } => "listener-lost",
        Event::NotAccepted { .. } => "not-accepted",
        Event::NotShared { .. } => "not-shared",
        Event::Unhealthy { .. } => "unhealthy",
        Event::Supervision(progress) => progress_name(progress),
        Event::Lagged { .. } => "missed",
        _ => "other",
    }
}

pub(crate) fn as_json(event: &Event) -> Value {
    let mut fields = Map::new();
    fields.insert("time_ms".into(), millis().into());
    fields.insert("event".into(), name(event).into());
    let mut add = |name: &str, value: Value| fields.insert(name.into(), value);
    if let Some(worker) = worker_of(event) {
        add("worker", worker.id().0.into());
        add("pid", worker.pid().into());
    }
    match event {
        Event::Listening { address: at, .. } => add_address(&mut add, at),
        Event::NotSteered { address: at, reason: why, .. }
        | Event::ListenerRestored { address: at, reason: why, .. }
        | Event::ListenerLost { address: at, reason: why, .. } => {
            add_address(&mut add, at);
            add("reason", why.clone().into());
        }
        Event::ModeChanged { address: at, mode, reason, .. } => {
            add_address(&mut add, at);
            add("mode", mode.to_string().into());
            add("reason", reason.to_string().into());
        }
        Event::NotAccepted { address: at, waiting, reason, .. } => {
            add_address(&mut add, at);
            add("waiting", (*waiting).into());
            add("reason", reason.clone().into());
        }
        Event::NotShared { address, reason, .. } => {
            add("address", address.clone().into());
            add("reason", reason.clone().into());
        }
        Event::ListenerClosed { address: at, dropped, .. } => {
            add_address(&mut add, at);
            add("dropped", (*dropped).into());
        }
        Event::Exit { worker, exit: how, .. } => {
            add_exit(&mut add, *how);
            add("exitedAfterDisconnect", worker.exited_after_disconnect().into());
            if matches!(how, ExitHow::Signal(signal) if worker.was_ended_by(*signal)) {
                add("endedByTroop", true.into());
            }
        }
        Event::Unhealthy { reason: why, .. } => drop(add("reason", why.clone().into())),
        Event::Error { error: e, .. } => drop(add("error", e.chain().into())),
        Event::Misbehaved { violation, consequence, .. } => {
            add("violation", violation.to_string().into());
            add("killed", (*consequence == Consequence::Killed).into());
        }
        Event::Supervision(progress) => match progress {
            Progress::Restarting { delay, cause } => {
                add("delay_ms", json!(delay.as_millis() as u64));
                if let Cause::NotStarted(reason) = cause {
                    add("reason", reason.clone().into());
                }
            }
            Progress::ReloadStarted { workers } => drop(add("workers", (*workers).into())),
            Progress::Awaiting { worker, at } => {
                add("worker", worker.0.into());
                add_address(&mut add, at);
            }
            Progress::Replaced { old, new } => {
                add("old", old.0.into());
                add("new", new.0.into());
            }
            Progress::ReloadFailed { reason, .. } | Progress::RollBackFailed { reason } => {
                drop(add("reason", reason.clone().into()))
            }
            Progress::NotRestarting { worker, how } => {
                add("worker", worker.0.into());
                add_exit(&mut add, *how);
            }
            Progress::Recycling { worker, reason } | Progress::RecycleFailed { worker, reason } => {
                add("worker", worker.0.into());
                add("reason", reason.clone().into());
            }
            Progress::PathRemoved { old, worker, at } => {
                add("old", old.0.into());
                add("worker", worker.0.into());
                add_address(&mut add, at);
            }
            Progress::RollingBack { workers } => drop(add("workers", (*workers).into())),
            Progress::GraceOver(worker) => drop(add("worker", worker.0.into())),
            Progress::PutOff { worker } | Progress::MakingWay { worker } => {
                drop(add("worker", worker.0.into()))
            }
            Progress::NotReady { worker, within } => {
                add("worker", worker.0.into());
                add("within_s", within.as_secs().into());
            }
            Progress::AssumedReady { worker, within, .. } => {
                add("worker", worker.0.into());
                add("within_s", within.as_secs_f64().into());
            }
            Progress::Degraded { ready, wanted } | Progress::Recovering { ready, wanted } => {
                add("ready", (*ready).into());
                add("wanted", (*wanted).into());
            }
            Progress::Recovered { workers } => drop(add("workers", (*workers).into())),
            Progress::GivingUp(why) => {
                add("been_ready", why.been_ready().into());
                match why {
                    GiveUp::NeverReady { ends, within, cause } => {
                        add("ends", (*ends).into());
                        add("within_s", within.as_secs().into());
                        match cause {
                            Cause::Ended(worker, how) => {
                                add("worker", worker.0.into());
                                add_exit(&mut add, *how);
                            }
                            Cause::NotStarted(reason) => drop(add("reason", reason.clone().into())),
                        }
                    }
                    GiveUp::NotReady { within, .. } => {
                        drop(add("within_s", within.as_secs().into()))
                    }
                    GiveUp::AllEnded { worker, how } => {
                        add("worker", worker.0.into());
                        add_exit(&mut add, *how);
                    }
                    _ => {}
                }
            }
            _ => {}
        },
        Event::Lagged { missed: n, .. } => drop(add("missed", (*n).into())),
        _ => {}
    }
    add("text", event.to_string().into());
    Value::Object(fields)
}

fn add_address(add: &mut impl FnMut(&str, Value) -> Option<Value>, at: &Address) {
    add("address", at.address.clone().into());
    add("port", at.port.into());
    add("addressType", at.address_type.to_string().into());
    add("fd", at.fd.into());
}

fn add_exit(add: &mut impl FnMut(&str, Value) -> Option<Value>, how: ExitHow) {
    match how {
        ExitHow::Code(code) => drop(add("code", code.into())),
        ExitHow::Signal(signal) => {
            drop(add("signal", signal_name(signal).map_or(signal.into(), Value::from)))
        }
        ExitHow::Unknown => {}
    }
}

fn progress_name(progress: &Progress) -> &'static str {
    match progress {
        Progress::Restarting { .. } => "restarting",
        Progress::ReloadStarted { .. } => "reload-started",
        Progress::Awaiting { .. } => "awaiting",
        Progress::Replaced { .. } => "replaced",
        Progress::ReloadFinished => "reload-finished",
        Progress::ReloadFailed { .. } => "reload-failed",
        Progress::ReloadRefused => "reload-refused",
        Progress::NotRestarting { .. } => "not-restarting",
        Progress::Recycling { .. } => "recycling",
        Progress::RecycleFailed { .. } => "recycle-failed",
        Progress::RollingBack { .. } => "rolling-back",
        Progress::RollBackFailed { .. } => "roll-back-failed",
        Progress::Pausing => "pausing",
        Progress::PutOff { .. } => "put-off",
        Progress::MakingWay { .. } => "making-way",
        Progress::PathRemoved { .. } => "path-removed",
        Progress::NotReady { .. } => "not-ready",
        Progress::AssumedReady { .. } => "assumed-ready",
        Progress::Degraded { .. } => "degraded",
        Progress::Recovering { .. } => "recovering",
        Progress::Recovered { .. } => "recovered",
        Progress::RecyclePostponed { .. } => "recycle-postponed",
        Progress::StopDelayed { .. } => "stop-delayed",
        Progress::Stopping => "stopping",
        Progress::GraceOver(_) => "grace-over",
        Progress::GivingUp(_) => "giving-up",
        _ => "other",
    }
}

fn worker_of(event: &Event) -> Option<&WorkerHandle> {
    match event {
        Event::Fork { worker: w, .. }
        | Event::Online { worker: w, .. }
        | Event::Listening { worker: w, .. }
        | Event::Message { worker: w, .. }
        | Event::Disconnect { worker: w, .. }
        | Event::Exit { worker: w, .. }
        | Event::Request { worker: w, .. }
        | Event::Misbehaved { worker: w, .. }
        | Event::Unhealthy { worker: w, .. }
        | Event::NotShared { worker: w, .. }
        | Event::Stalled { worker: w, .. }
        | Event::Resumed { worker: w, .. } => Some(w),
        Event::Error { worker: w, .. } => w.as_ref(),
        _ => None,
    }
}
