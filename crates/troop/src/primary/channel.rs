//! The primary's end of one worker's channel.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use troop_core::event::Violation;
use troop_core::primary::Primary;
use troop_core::wire::advanced::{self, Kind as Whose};
use troop_core::wire::frame::FrameReader;
use troop_core::wire::incoming::{self, Act, Incoming, TroopMessage};
use troop_core::wire::outgoing::{HANDLE_ACK, HANDLE_NACK, socket_all_closed, socket_count};
use troop_core::{ConnId, ListenerId, Time, WorkerId};
use troop_sys::poll::Interest;
use troop_sys::socket::{self, Kind};

use super::driver::Moves;
use super::handle::WorkerHandle;
use super::relay::Relay;
use super::saved::long_line::LongLine;
use crate::channel::{MAX_LINE, MAX_QUEUED, Outbox, Unsettled, framing};
use crate::closer::{Closer, Foreign};
use crate::event::Event;
use crate::message::{Content, Handle, Held, Message, Request, classify};

pub(crate) struct Channel {
    pub(crate) worker: WorkerHandle,
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) reader: FrameReader<Foreign>,
    /// Checks what comes in V8's format.
    checker: advanced::Checker,
    pub(crate) outbox: Outbox,
    /// Whether its messages are in V8's format.
    pub(crate) advanced: bool,
    /// Events that the poller reports.
    pub(crate) interest: Interest,
    /// Whether the socket is full.
    pub(crate) blocked: bool,
    /// Connections to send in one message.
    pub(crate) batch: Batch,
    pub(crate) unsettled: HashMap<u64, Unsettled>,
    /// Whether to close the channel when everything has been written.
    pub(crate) last: bool,
    /// Whether the program's thread has a copy of the socket (direct I/O).
    pub(crate) has_copy: bool,
    /// Maximum number of sockets of the worker in flight to the program.
    pub(crate) most_handles: usize,
    /// Closes descriptors from the worker, and the channel, if the worker runs as another user.
    pub(crate) closer: Option<Closer>,
    /// Whether a thread consumes a message with too many descriptors, so that nobody else may read.
    pub(crate) is_consumed_aside: bool,
    /// Something has come but answers and reports about connections.
    pub(crate) has_changed: bool,
    /// The beginning of a long line, as far as it is part of the state that is held.
    pub(crate) long_line: Option<LongLine>,
    /// What is known of descriptors that another engine has received with the line that comes.
    pub(crate) lost: Option<LostHandles>,
    /// The worker and this process may not agree on what was written or acknowledged.
    pub(crate) is_doubtful: bool,
}

/// Descriptors that another engine has received, which was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostHandles {
    /// It has not done anything with them: the worker is to send them again.
    Unused,
    /// It may have told the worker that they have come.
    PerhapsAcknowledged,
}

/// Maximum number of descriptors that wait for the end of their line. A worker sends one at a time.
const MAX_WAITING_HANDLES: usize = 16;
/// Maximum number of unanswered requests of a worker.
const MAX_REQUESTS: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) listener: Option<ListenerId>,
    pub(crate) seqs: Vec<u64>,
    pub(crate) conns: Vec<ConnId>,
}

/// Destinations of the messages of a worker's program: the relay, if there is one, or events.
pub(crate) struct Outlets<'a> {
    pub(crate) relay: Option<&'a mut Relay>,
    /// Messages and requests, reported in the order of the core's notices.
    pub(crate) messages: &'a mut Vec<Event>,
    pub(crate) moves: Moves<'a>,
}

impl Channel {
    pub(crate) fn new(
        worker: WorkerHandle,
        socket: OwnedFd,
        advanced: bool,
        most_handles: usize,
        closer: Option<Closer>,
    ) -> Channel {
        Channel {
            worker,
            socket: Arc::new(socket),
            reader: FrameReader::with(framing(advanced), MAX_LINE)
                .most_handles(MAX_WAITING_HANDLES),
            advanced,
            checker: advanced::Checker::default(),
            outbox: Outbox::default(),
            interest: Interest::Read,
            blocked: false,
            batch: Batch::default(),
            unsettled: HashMap::new(),
            last: false,
            has_copy: false,
            most_handles,
            closer,
            is_consumed_aside: false,
            has_changed: false,
            long_line: None,
            lost: None,
            is_doubtful: false,
        }
    }

    /// Number of sockets for the worker that it has not acknowledged, or that are not written yet.
    pub(crate) fn handles_under_way(&self) -> usize {
        self.outbox.handles().max(self.unsettled.len())
    }

    /// Publishes the amount of unwritten data to the program.
    pub(crate) fn show_unwritten(&self) {
        self.worker.shared.mailbox.set_unwritten(self.outbox.len(), self.handles_under_way());
    }

    /// Whether so much is unwritten that the channel is not read until the worker has read some of
    /// it.
    pub(crate) fn is_backpressured(&self) -> bool {
        self.outbox.len() > 2 * MAX_QUEUED
    }

    /// Whether so much is unwritten that senders wait.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.len() > MAX_QUEUED
    }

    /// Queues a line for the worker, in the format of its channel.
    pub(crate) fn send_line(&mut self, line: &[u8]) {
        send_line(&mut self.outbox, self.advanced, line);
    }

    /// Queues a line with a descriptor.
    pub(crate) fn send_line_with(&mut self, line: &[u8], handle: OwnedFd) {
        let advanced = self.advanced;
        self.outbox.write_with(handle, |out| write_line(out, advanced, line));
    }

    /// Whether the beginning of a line was read.
    fn is_in_line(&self) -> bool {
        !self.reader.unfinished().0.bytes.is_empty()
    }

    /// Handles input line by line.
    pub(crate) fn receive(
        &mut self,
        now: Time,
        core: &mut Primary,
        id: WorkerId,
        bytes: &[u8],
        handles: &mut Vec<OwnedFd>,
        Outlets { mut relay, messages, mut moves }: Outlets<'_>,
    ) {
        core.heard(now, id);
        self.has_changed |= self.is_in_line();
        let worker = &self.worker;
        let closer = self.closer.as_ref();
        let mut chunk =
            self.reader.feed(bytes, handles.drain(..).map(|fd| Foreign::new(fd, closer)));
        loop {
            let mut line = match chunk.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(e) => {
                    core.violated(id, e.into());
                    return;
                }
            };
            let translated;
            let text = if self.advanced {
                // Checked before Node reads it, which some inputs would crash.
                match self.checker.check(line.bytes) {
                    Ok(Whose::Program) => {
                        relay.iter_mut().for_each(|relay| relay.pass(line.bytes));
                        continue;
                    }
                    Ok(Whose::Node { ours }) => match advanced::internal(line.bytes) {
                        Some(json) => translated = json,
                        None if ours => {
                            core.violated(
                                id,
                                Violation::Malformed(
                                    "a message of Node's own, not as Node writes it".into(),
                                ),
                            );
                            return;
                        }
                        None => {
                            relay.iter_mut().for_each(|relay| relay.pass(line.bytes));
                            continue;
                        }
                    },
                    Err(violation) => {
                        core.violated(id, violation);
                        return;
                    }
                }
                &translated
            } else {
                line.bytes
            };
            match incoming::parse(text) {
                Ok(Incoming::User(body)) => match &mut relay {
                    Some(relay) => relay.pass(line.bytes),
                    None => user_message(core, worker, body, None, messages),
                },
                // The program does not read fast enough. A Node worker sends the socket again, and
                // then gives up.
                Ok(Incoming::Handle(_))
                    if relay.is_none()
                        && worker.shared.held.load(Ordering::Relaxed) >= self.most_handles =>
                {
                    drop(line.take_handle());
                    send_line(&mut self.outbox, self.advanced, HANDLE_NACK);
                }
                Ok(Incoming::Handle(wrapped)) => match line.take_handle() {
                    Some(fd) if is_move(wrapped.body) => {
                        let taken = take_moved(core, id, wrapped.body, fd, &mut moves);
                        let answer = match taken {
                            Ok(true) => HANDLE_ACK,
                            Ok(false) => HANDLE_NACK,
                            Err(violation) => {
                                core.violated(id, violation);
                                HANDLE_NACK
                            }
                        };
                        send_line(&mut self.outbox, self.advanced, answer);
                    }
                    Some(fd) => {
                        send_line(&mut self.outbox, self.advanced, HANDLE_ACK);
                        match incoming::parse(wrapped.body) {
                            Ok(Incoming::User(body)) => match &mut relay {
                                Some(relay) if !fits(&fd, &wrapped.kind) => {
                                    // As Node does when a worker sends a socket twice: the message
                                    // without the socket.
                                    core.violated(id, Violation::BadHandle);
                                    if !self.advanced {
                                        relay.pass(wrapped.body);
                                    }
                                }
                                Some(relay) => fd
                                    .take()
                                    .into_iter()
                                    .for_each(|fd| relay.pass_with(line.bytes, fd)),
                                None => {
                                    let handle = handle(fd);
                                    if handle.is_none() {
                                        core.violated(id, Violation::BadHandle);
                                    }
                                    let held = handle.map(|handle| {
                                        Held::new(handle, &worker.shared.held, closer)
                                    });
                                    user_message(core, worker, body, held, messages);
                                }
                            },
                            Ok(inner) => core.message(now, id, inner),
                            Err(violation) => core.violated(id, violation),
                        }
                    }
                    None => match self.lost {
                        Some(LostHandles::PerhapsAcknowledged) => self.is_doubtful = true,
                        lost => {
                            send_line(&mut self.outbox, self.advanced, HANDLE_NACK);
                            if lost.is_none() {
                                core.violated(id, Violation::MissingHandle);
                            }
                        }
                    },
                },
                Ok(
                    Incoming::SocketGetCount(_)
                    | Incoming::SocketNotifyClose(_)
                    | Incoming::Unknown,
                ) if relay.is_some() => {
                    relay.iter_mut().for_each(|relay| relay.pass(line.bytes));
                }
                // A forwarded socket does not belong to this process any more, so none is open
                // here.
                Ok(Incoming::SocketGetCount(key)) => socket_count(self.outbox.buffer(), &key, 0),
                Ok(Incoming::SocketNotifyClose(key)) => {
                    socket_all_closed(self.outbox.buffer(), &key)
                }
                Ok(message) => {
                    self.has_changed |= !message.is_of_connections();
                    if let (Some(relay), Incoming::Cluster(message)) = (&mut relay, &message)
                        && matches!(
                            message.act,
                            Some(Act::Online | Act::Listening | Act::ExitedAfterDisconnect)
                        )
                    {
                        relay.pass(line.bytes);
                    }
                    core.message(now, id, message);
                }
                Err(violation) => core.violated(id, violation),
            }
            if core.is_cut_off(id) {
                return;
            }
        }
        if self.is_in_line() {
            self.has_changed = true;
        } else {
            self.lost = None;
        }
        let surplus = self.reader.take_surplus();
        if surplus > 0 {
            core.violated(id, Violation::SurplusHandles(surplus));
        }
    }
}

/// Returns a line in the format of a channel; `frame` is the buffer for a translated one.
pub(crate) fn in_format<'a>(advanced: bool, line: &'a [u8], frame: &'a mut Vec<u8>) -> &'a [u8] {
    if !advanced {
        return line;
    }
    frame.clear();
    advanced::from_json(frame, line);
    frame
}

/// Puts a line into an outbox, in the format of the channel.
pub(crate) fn send_line(outbox: &mut Outbox, advanced: bool, line: &[u8]) {
    write_line(outbox.buffer(), advanced, line);
}

fn write_line(out: &mut Vec<u8>, advanced: bool, line: &[u8]) {
    if advanced {
        advanced::from_json(out, line);
    } else {
        out.extend_from_slice(line);
    }
}

fn is_move(body: &[u8]) -> bool {
    matches!(incoming::parse(body), Ok(Incoming::Troop(TroopMessage::Move { .. })))
}

/// Handles a connection that a worker returns. Returns whether the primary has it now.
fn take_moved(
    core: &mut Primary,
    id: WorkerId,
    body: &[u8],
    fd: Foreign,
    moves: &mut Moves<'_>,
) -> Result<bool, Violation> {
    let Ok(Incoming::Troop(TroopMessage::Move { key, kept })) = incoming::parse(body) else {
        return Ok(false);
    };
    match core.may_move(id, &key)? {
        None => Ok(false),
        Some(listener) => moves.take(id, listener, core.needs(listener), kept, fd),
    }
}

/// Whether a descriptor has the kind that Node expects for this type; another kind could crash the
/// receiving process.
fn fits(fd: &Foreign, kind: &str) -> bool {
    matches!(
        (fd.get().map(socket::kind), kind),
        (Some(Ok(Kind::TcpStream | Kind::UnixStream)), "net.Socket" | "net.Native")
            | (Some(Ok(Kind::TcpListener | Kind::UnixListener)), "net.Server" | "net.Native")
            | (Some(Ok(Kind::Udp { .. })), "dgram.Socket" | "dgram.Native")
    )
}

/// Returns the handle for the program, unless the descriptor is unusable.
fn handle(fd: Foreign) -> Option<Handle> {
    socket::kind(fd.get()?).ok()?;
    Handle::from_fd(fd.take()?).ok()
}

fn user_message(
    core: &mut Primary,
    worker: &WorkerHandle,
    body: &str,
    handle: Option<Held>,
    messages: &mut Vec<Event>,
) {
    match classify(body) {
        Content::Message => {
            messages.push(Event::Message {
                worker: worker.clone(),
                message: Message::new(body, handle),
            });
            core.message_queued();
        }
        Content::Request { id, .. } if !worker.shared.mailbox.owe(MAX_REQUESTS) => {
            worker.shared.mailbox.refuse(
                id,
                &format!("{MAX_REQUESTS} requests of this worker wait for their answers"),
            );
        }
        Content::Request { id, body } => {
            let answer_to = worker.clone();
            let send = move |line: String| answer_to.shared.mailbox.send_owed(id, &line);
            messages.push(Event::Request {
                worker: worker.clone(),
                request: Request::new(id, body, Box::new(send)),
            });
            core.message_queued();
        }
        Content::Reply { id, result } => {
            worker.shared.mailbox.replied(id, result);
        }
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("unwritten", &self.outbox.len()).finish_non_exhaustive()
    }
}
