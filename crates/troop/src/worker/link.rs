//! The task that owns a worker's channel.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use troop_core::event::AddressType;
use troop_core::primary::DEFAULT_REPORT_INTERVAL;
use troop_core::wire::advanced;
use troop_core::wire::frame::FrameReader;
use troop_core::wire::incoming::{self, Act, ClusterMessage, Incoming, TroopMessage};
use troop_core::wire::outgoing::{self, HANDLE_ACK, HANDLE_NACK, Question};
use troop_sys::fdpass;

use super::WorkerEvent;
use super::inner::{Ask, Grant, Inner, Reply};
use super::listen::Wanted;
use super::queue::{Conn, ConnQueue, Taken};
use crate::channel::{Flushed, MAX_LINE, Mail, Outbox, READ_SIZE, Unsettled, framing};
use crate::message::{Content, Handle, Held, Message, Request, classify};

/// The pause before a retry when the channel could not be written to for another reason than a full
/// socket.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// The longest interval of reports that the primary can request.
const MAX_REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// A worker's end of its channel: reads the primary's messages and writes the worker's.
pub(super) struct Link {
    socket: UnixStream,
    inner: Arc<Inner>,
    reader: FrameReader<OwnedFd>,
    /// Whether the primary uses V8's format instead of lines of JSON.
    advanced: bool,
    outbox: Outbox,
    /// The `seq` of this worker's next message; that of `online` was 0.
    seq: u64,
    queries: HashMap<u64, oneshot::Sender<Reply>>,
    servers: HashMap<String, Arc<ConnQueue>>,
    unsettled: VecDeque<Unsettled>,
    mail: Mail,
    /// The `seq` of a sent `exitedAfterDisconnect`, and the caller that waits for its answer.
    leaving: Vec<(u64, oneshot::Sender<()>)>,
    later: bool,
    /// Whether the primary requests reports of load.
    reports: bool,
    /// Minimum interval of reports.
    reports_every: Duration,
    /// The last report: open connections, load, and its time.
    told: (u32, u32),
    told_at: Instant,
    buffer: Vec<u8>,
    received: Vec<OwnedFd>,
}

/// Time that a worker that is done waits for its primary to close the channel. A Node primary that
/// sees the end of the channel and of the process at the same time may report them in the wrong
/// order.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// The reason for the end of a link.
enum End {
    /// The primary closed the channel, or broke it.
    Closed,
    /// The program has finished.
    Finished,
}

impl Link {
    pub(super) fn new(channel: OwnedFd, advanced: bool, inner: Arc<Inner>) -> io::Result<Link> {
        inner.watch(channel.try_clone()?)?;
        Ok(Link {
            socket: UnixStream::from_std(StdUnixStream::from(channel))?,
            inner,
            reader: FrameReader::with(framing(advanced), MAX_LINE),
            advanced,
            outbox: Outbox::advanced(advanced),
            seq: 1,
            queries: HashMap::new(),
            servers: HashMap::new(),
            unsettled: VecDeque::new(),
            mail: Mail::default(),
            leaving: Vec::new(),
            later: false,
            reports: false,
            reports_every: DEFAULT_REPORT_INTERVAL,
            told: (0, 0),
            told_at: Instant::now(),
            buffer: vec![0; READ_SIZE],
            received: Vec::new(),
        })
    }

    pub(super) async fn run(mut self) {
        let end = self.serve().await;
        // Connections that the program has not taken are closed here; the primary hands its copies
        // to other workers.
        for queue in self.servers.values() {
            drop(queue.close());
        }
        let finished = matches!(end, End::Finished);
        if finished {
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.peer_closes()).await;
        }
        self.inner.link_ended(finished);
        // Other processes may hold copies of the channel, so it is shut down.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Waits until the primary has closed its side, too. Messages that it still sends are lost with
    /// the channel.
    async fn peer_closes(&mut self) {
        while self.socket.readable().await.is_ok() {
            match self.socket.try_read(&mut self.buffer) {
                Ok(0) => return,
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }

    async fn serve(&mut self) -> End {
        let notify = self.inner.notify.clone();
        loop {
            let finish = self.collect();
            if self.flush().is_err() {
                // The primary does not read any more; its earlier messages may still be unread.
                self.outbox = Outbox::advanced(self.advanced);
            }
            if finish && self.outbox.is_empty() && self.unsettled.is_empty() {
                return End::Finished;
            }
            let report = self.report();
            let interest = if self.outbox.is_empty() || self.later {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let report = async {
                match report {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let retry = async {
                if self.later {
                    tokio::time::sleep(RETRY_PAUSE).await
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = notify.notified() => {}
                ready = self.socket.ready(interest) => {
                    match ready {
                        Ok(ready) if ready.is_readable() || ready.is_read_closed() => {
                            if let Err(end) = self.read() {
                                return end;
                            }
                            if self.inner.events.is_busy() {
                                tokio::task::yield_now().await;
                            }
                        }
                        Ok(_) => {}
                        Err(_) => return End::Closed,
                    }
                }
                () = retry => {}
                () = report => {}
            }
        }
    }

    /// Reports the load to the primary, if a report is due. Returns the time until then, if the
    /// load has changed.
    fn report(&mut self) -> Option<Duration> {
        if !self.reports || !self.inner.has_load_changed() {
            return None;
        }
        let wait = self.reports_every.saturating_sub(self.told_at.elapsed());
        if !wait.is_zero() {
            return Some(wait);
        }
        self.inner.load_is_seen();
        let now = self.inner.load();
        if std::mem::replace(&mut self.told, now) != now {
            self.told_at = Instant::now();
            outgoing::load(self.outbox.buffer(), now.0, Some(now.1));
            // The rest is written when the socket is ready.
            let _ = self.flush();
        }
        None
    }

    // ---- requests of the program ----

    /// Turns all requests of the program into lines. Returns true if the program has finished.
    fn collect(&mut self) -> bool {
        let (asks, taken, finish) = {
            let mut shared = self.inner.lock();
            (std::mem::take(&mut shared.asks), std::mem::take(&mut shared.taken), shared.finish)
        };
        if !taken.is_empty() {
            self.answer(&taken, &[]);
        }
        self.inner.mailbox.take(&mut self.mail);
        let mut from = 0;
        for posted in self.mail.handles.drain(..) {
            self.outbox.push(&self.mail.bytes[from..posted.at]);
            from = posted.at;
            if let Ok(copy) = posted.handle.try_clone() {
                self.outbox.push_with(&posted.line, copy);
                self.unsettled.push_back(Unsettled::new(
                    posted.line,
                    posted.handle,
                    posted.settled,
                    posted.tries,
                ));
            } else if let Some(settled) = posted.settled {
                let _ = settled.send(false);
            }
        }
        self.outbox.take_in(&mut self.mail.bytes, from);
        for ask in asks {
            let seq = self.seq;
            self.seq += 1;
            match ask {
                Ask::Listen(wanted, done) => {
                    self.queries.insert(seq, done);
                    question(self.outbox.buffer(), "queryServer", &wanted, seq);
                }
                Ask::Listening(wanted) => question(self.outbox.buffer(), "listening", &wanted, seq),
                Ask::Close(key) => {
                    self.close_server(&key);
                    outgoing::close(self.outbox.buffer(), &key, seq);
                }
                Ask::Leave(done) => {
                    self.drain();
                    let seq = self.next_seq();
                    self.leaving.push((seq, done));
                    outgoing::exited_after_disconnect(self.outbox.buffer(), seq);
                }
            }
        }
        finish
    }

    fn next_seq(&mut self) -> u64 {
        let seq = self.seq;
        self.seq += 1;
        seq
    }

    fn answer(&mut self, taken: &[Taken], returned: &[Taken]) {
        let batch =
            |all: &[Taken]| all.iter().filter(|t| t.batched).map(|t| t.seq).collect::<Vec<_>>();
        let (taken_batch, returned_batch) = (batch(taken), batch(returned));
        if !taken_batch.is_empty() || !returned_batch.is_empty() {
            // The number of open connections is sent along, at no cost.
            let open = self.reports.then(|| self.inner.load().0);
            self.told.0 = open.unwrap_or(self.told.0);
            outgoing::taken(self.outbox.buffer(), &taken_batch, &returned_batch, open);
        }
        for (all, accepted) in [(taken, true), (returned, false)] {
            for single in all.iter().filter(|t| !t.batched) {
                let seq = self.next_seq();
                outgoing::accepted(self.outbox.buffer(), single.seq, accepted, seq);
            }
        }
    }

    fn give_back(&mut self, conns: impl IntoIterator<Item = Conn>) {
        let returned: Vec<Taken> = conns.into_iter().map(|c| c.answer).collect();
        if !returned.is_empty() {
            self.answer(&[], &returned);
        }
    }

    fn close_server(&mut self, key: &str) {
        if let Some(queue) = self.servers.remove(key) {
            let left = queue.close();
            self.give_back(left);
        }
    }

    /// Closes the listeners: connections that were not taken are returned, and the program is
    /// notified.
    fn drain(&mut self) {
        for (key, queue) in std::mem::take(&mut self.servers) {
            let left = queue.close();
            self.give_back(left);
            let seq = self.next_seq();
            outgoing::close(self.outbox.buffer(), &key, seq);
        }
        self.inner.close_to_connections();
        self.inner.drain_soon();
    }

    fn flush(&mut self) -> io::Result<()> {
        self.later = false;
        if self.outbox.is_empty() {
            self.inner.mailbox.set_unwritten(0, 0);
            return Ok(());
        }
        let (outbox, socket) = (&mut self.outbox, &self.socket);
        let flushed = socket.try_io(Interest::WRITABLE, || match outbox.flush(socket.as_fd())? {
            Flushed::Blocked => Err(io::ErrorKind::WouldBlock.into()),
            flushed => Ok(flushed),
        });
        self.inner.mailbox.set_unwritten(self.outbox.len(), self.outbox.handles());
        match flushed {
            Ok(flushed) => {
                self.later = flushed == Flushed::Later;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        }
    }

    // ---- messages of the primary ----

    fn read(&mut self) -> Result<(), End> {
        let (buffer, received, socket) = (&mut self.buffer, &mut self.received, &self.socket);
        let mut got = Ok(None);
        // A read that does not fill the buffer has emptied the socket, unless it stopped at a
        // descriptor. Returning `WouldBlock` tells the runtime so, and saves a read that would find
        // nothing.
        let _ = socket.try_io(Interest::READABLE, || {
            let read = fdpass::recv(socket.as_fd(), buffer, received);
            let drained = match &read {
                Ok(read) => read.len > 0 && read.len < buffer.len() && received.is_empty(),
                Err(e) => e.kind() == io::ErrorKind::WouldBlock,
            };
            got = read.map(Some);
            if drained { Err(io::Error::from(io::ErrorKind::WouldBlock)) } else { Ok(()) }
        });
        match got {
            Ok(None) => Ok(()),
            Ok(Some(got)) if got.len == 0 => Err(End::Closed),
            Ok(Some(got)) => self.receive(got.len),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                Ok(())
            }
            Err(_) => Err(End::Closed),
        }
    }

    fn receive(&mut self, len: usize) -> Result<(), End> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut reader = std::mem::replace(&mut self.reader, FrameReader::new(0));
        let mut received = std::mem::take(&mut self.received);
        let mut events = Vec::new();
        let mut chunk = reader.feed(&buffer[..len], received.drain(..));
        let result = loop {
            match chunk.next_line() {
                Ok(None) => break Ok(()),
                // A primary with unreadable messages is treated as gone.
                Err(_) => break Err(End::Closed),
                Ok(Some(mut line)) => {
                    let translated;
                    let text = if self.advanced {
                        let Some(json) = advanced::to_json(line.bytes) else {
                            // A value that has no form in JSON. The program is notified that an
                            // event was lost.
                            events.push(WorkerEvent::Lagged { missed: 1 });
                            if line.take_handle().is_some() {
                                self.outbox.push(HANDLE_ACK);
                            }
                            continue;
                        };
                        translated = json;
                        &translated
                    } else {
                        line.bytes
                    };
                    let Ok(message) = incoming::parse(text) else { break Err(End::Closed) };
                    self.message(message, &mut || line.take_handle(), &mut events);
                }
            }
        };
        if !events.is_empty() {
            self.inner.events.push(events.into_iter());
        }
        (self.reader, self.buffer, self.received) = (reader, buffer, received);
        result
    }

    fn message(
        &mut self,
        message: Incoming<'_>,
        handle: &mut dyn FnMut() -> Option<OwnedFd>,
        events: &mut Vec<WorkerEvent>,
    ) {
        match message {
            Incoming::User(body) => self.user_message(body, None, events),
            Incoming::Handle(wrapped) => {
                let Some(fd) = handle() else {
                    self.outbox.push(HANDLE_NACK);
                    return;
                };
                self.outbox.push(HANDLE_ACK);
                match incoming::parse(wrapped.body) {
                    Ok(Incoming::Cluster(message)) => self.cluster_message(&message, Some(fd)),
                    Ok(Incoming::User(body)) => {
                        self.user_message(body, Handle::from_fd(fd).ok(), events)
                    }
                    _ => {}
                }
            }
            Incoming::Cluster(message) => self.cluster_message(&message, None),
            Incoming::Troop(TroopMessage::Conns { key, seqs }) => {
                let mut returned = Vec::new();
                let queue = self.servers.get(&*key).cloned();
                for seq in seqs {
                    let answer = Taken { seq, batched: true };
                    // The missing descriptors are the last ones.
                    match (handle(), &queue) {
                        (Some(fd), Some(queue)) => {
                            returned.extend(queue.push(Conn { fd, answer }).err().map(|c| c.answer))
                        }
                        _ => returned.push(answer),
                    }
                }
                if !returned.is_empty() {
                    self.answer(&[], &returned);
                }
            }
            Incoming::Troop(TroopMessage::Recall(seqs)) => {
                let back: Vec<Conn> = seqs
                    .iter()
                    .filter_map(|seq| self.servers.values().find_map(|queue| queue.recall(*seq)))
                    .collect();
                self.give_back(back);
            }
            Incoming::Troop(TroopMessage::Report(every)) => {
                self.reports_every = Duration::from_millis(every).min(MAX_REPORT_INTERVAL);
            }
            Incoming::Troop(TroopMessage::Count { key }) => {
                let open = self.inner.movable.count(&key);
                outgoing::counted(self.outbox.buffer(), &key, open);
            }
            Incoming::Troop(TroopMessage::Rebalance { key, count }) => {
                self.inner.movable.request_moves(&key, count);
            }
            Incoming::HandleAck => self.handle_settled(true),
            Incoming::HandleNack => self.handle_settled(false),
            Incoming::SocketGetCount(key) => outgoing::socket_count(self.outbox.buffer(), &key, 0),
            Incoming::SocketNotifyClose(key) => {
                outgoing::socket_all_closed(self.outbox.buffer(), &key)
            }
            Incoming::Answer { .. } | Incoming::Troop(_) | Incoming::Unknown => {}
        }
    }

    fn user_message(&mut self, body: &str, handle: Option<Handle>, events: &mut Vec<WorkerEvent>) {
        match classify(body) {
            #[cfg(feature = "metrics")]
            Content::Message if super::metrics::answer(&self.inner, body) => {}
            Content::Message => {
                events.push(WorkerEvent::Message(Message::new(body, handle.map(Held::uncounted))))
            }
            Content::Request { id, body } => {
                // Requests of the primary are not limited.
                self.inner.mailbox.owe(usize::MAX);
                let inner = Arc::downgrade(&self.inner);
                let send = move |line: String| {
                    if let Some(inner) = inner.upgrade() {
                        inner.mailbox.send_owed(id, &line);
                    }
                };
                events.push(WorkerEvent::Request(Request::new(id, body, Box::new(send))));
            }
            Content::Reply { id, result } => {
                self.inner.mailbox.replied(id, result);
            }
        }
    }

    fn cluster_message(&mut self, message: &ClusterMessage<'_>, handle: Option<OwnedFd>) {
        if let Some(ack) = message.ack.and_then(|ack| u64::try_from(ack).ok()) {
            if let Some(done) = self.queries.remove(&ack) {
                self.replied(message, handle, done);
                return;
            }
            if let Some(at) = self.leaving.iter().position(|(seq, _)| *seq == ack) {
                let _ = self.leaving.swap_remove(at).1.send(());
                return;
            }
        }
        match message.act {
            Some(Act::Newconn) => {
                let (Some(seq), Some(fd)) = (message.seq, handle) else { return };
                let answer = Taken { seq, batched: false };
                let queue = message.key.as_deref().and_then(|key| self.servers.get(key));
                let refused = match queue {
                    Some(queue) => queue.push(Conn { fd, answer }).is_err(),
                    None => true,
                };
                if refused {
                    self.answer(&[], &[answer]);
                }
            }
            Some(Act::Disconnect) => {
                self.inner.drain_spread(Duration::from_millis(message.drain_spread.unwrap_or(0)));
                self.inner.set_moves(message.moves);
                self.drain();
            }
            _ => {}
        }
    }

    fn replied(
        &mut self,
        message: &ClusterMessage<'_>,
        handle: Option<OwnedFd>,
        done: oneshot::Sender<Reply>,
    ) {
        let errno = message.errno.unwrap_or(0).saturating_abs();
        let key = message.key.as_deref().unwrap_or_default().to_owned();
        let name =
            message.sockname.as_ref().map(|name| (name.address.clone().into_owned(), name.port));
        self.reports |= message.troop.is_some_and(|version| version >= 2);
        let grant = (errno == 0).then(|| {
            let queue = self.servers.entry(key.clone()).or_default().clone();
            match handle {
                Some(fd) => Grant::Shared(fd, queue),
                None => Grant::Handed(queue),
            }
        });
        if let Err(unheard) = done.send(Reply { errno, key, name, grant })
            && unheard.errno == 0
        {
            // The program has stopped waiting; an open listener whose connections are never taken
            // must not remain.
            self.close_server(&unheard.key);
            let seq = self.next_seq();
            outgoing::close(self.outbox.buffer(), &unheard.key, seq);
        }
    }

    fn handle_settled(&mut self, delivered: bool) {
        let Some((unsettled, copy)) = self.unsettled.pop_front().and_then(|u| u.settle(delivered))
        else {
            return;
        };
        self.outbox.push_with(&unsettled.line, copy);
        self.unsettled.push_back(unsettled);
    }
}

fn question(out: &mut Vec<u8>, act: &'static str, wanted: &Wanted, seq: u64) {
    let requested = &wanted.requested;
    let address_type = match requested.kind {
        AddressType::Tcp4 => 4.into(),
        AddressType::Tcp6 => 6.into(),
        AddressType::Unix => (-1).into(),
        AddressType::Udp4 => "udp4".into(),
        AddressType::Udp6 => "udp6".into(),
        AddressType::Fd => serde_json::Value::Null,
    };
    let question = Question {
        index: wanted.index,
        data: None,
        address: requested.address.as_deref(),
        port: requested.port,
        address_type,
        fd: requested.fd,
        flags: wanted.flags,
        backlog: wanted.backlog,
    };
    outgoing::question(out, act, &question, seq);
}
