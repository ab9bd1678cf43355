//! The bounded queue of a program's messages for the owner of the channel.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use troop_core::wire::outgoing::{self, HandleKind};

use super::{HANDLE_TRIES, MAX_QUEUED};
use crate::error::{Error, Result};
use crate::message::{Handle, Message, reply_line};

/// Called when something was put into an empty mailbox.
type Ring = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Mailbox {
    queue: Mutex<MailQueue>,
    /// Bytes that the owner of the channel has taken out but not written yet.
    unwritten: AtomicUsize,
    /// Sockets that the owner of the channel has taken out but not written yet.
    unwritten_handles: AtomicUsize,
    room: Notify,
    ring: Ring,
    last_request: AtomicU64,
    /// Requests of the other side that have no answer yet.
    owed: AtomicUsize,
    /// Number of queued sockets from which senders wait.
    most_handles: usize,
}

/// Number of queued bytes from which replies become refusals: a peer that sends requests must read
/// the replies.
const MAX_OWED: usize = 16 * 1024 * 1024;

#[derive(Default)]
struct MailQueue {
    bytes: Vec<u8>,
    handles: Vec<Posted>,
    closed: bool,
    /// Whether the worker's program has no channel, so that messages are refused.
    is_unread: bool,
    /// Whether the owner has been notified and has not emptied the queue since.
    rung: bool,
    requests: HashMap<u64, oneshot::Sender<std::result::Result<Message, String>>>,
}

/// A message with a socket, at its place among the bytes.
pub(crate) struct Posted {
    /// Number of bytes that precede it.
    pub(crate) at: usize,
    /// The complete line.
    pub(crate) line: Vec<u8>,
    pub(crate) handle: OwnedFd,
    /// Receives whether the socket arrived.
    pub(crate) settled: Option<oneshot::Sender<bool>>,
    /// Number of attempts to send it to a process that does not receive it.
    pub(crate) tries: u8,
}

/// What was taken out of a mailbox.
#[derive(Default)]
pub(crate) struct Mail {
    pub(crate) bytes: Vec<u8>,
    pub(crate) handles: Vec<Posted>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("queued", &self.queued()).finish_non_exhaustive()
    }
}

impl Mailbox {
    pub(crate) fn new(ring: Ring, most_handles: usize) -> Mailbox {
        Mailbox {
            queue: Mutex::default(),
            unwritten: AtomicUsize::new(0),
            unwritten_handles: AtomicUsize::new(0),
            room: Notify::new(),
            ring,
            last_request: AtomicU64::new(0),
            owed: AtomicUsize::new(0),
            most_handles,
        }
    }

    fn lock(&self) -> MutexGuard<'_, MailQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.lock().bytes.len() + self.unwritten.load(Ordering::Relaxed)
    }

    /// Whether the queue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        let queue = self.lock();
        queue.bytes.is_empty() && queue.handles.is_empty()
    }

    /// Queues something, unless the channel is closed or (if `bounded`) the queue is full.
    fn post(&self, bounded: bool, write: impl FnOnce(&mut MailQueue) -> Result<()>) -> Result<()> {
        if self.put(bounded, write)? {
            (self.ring)();
        }
        Ok(())
    }

    /// Queues like [`Mailbox::post`] and returns whether the owner must still be notified.
    fn put(&self, bounded: bool, write: impl FnOnce(&mut MailQueue) -> Result<()>) -> Result<bool> {
        let mut queue = self.lock();
        if queue.is_unread {
            return Err(Error::Settings(
                "the worker takes sockets by activation (Builder::activation), and has no channel for messages"
                    .into(),
            ));
        }
        if queue.closed {
            return Err(Error::Closed);
        }
        let bytes = queue.bytes.len() + self.unwritten.load(Ordering::Relaxed);
        let handles = queue.handles.len() + self.unwritten_handles.load(Ordering::Relaxed);
        if bounded && (bytes >= MAX_QUEUED || handles >= self.most_handles) {
            return Err(Error::Full);
        }
        write(&mut queue)?;
        Ok(!std::mem::replace(&mut queue.rung, true))
    }

    /// Queues complete messages in wire format. Returns whether the owner must still be notified by
    /// [`Mailbox::tell`].
    pub(crate) fn put_raw(&self, messages: &[u8]) -> Result<bool> {
        self.put(true, |queue| {
            queue.bytes.extend_from_slice(messages);
            Ok(())
        })
    }

    /// Notifies the owner that the queue is not empty.
    pub(crate) fn notify(&self) {
        (self.ring)();
    }

    pub(crate) fn try_send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        self.post(true, |queue| {
            let before = queue.bytes.len();
            if let Err(e) = serde_json::to_writer(&mut queue.bytes, message) {
                queue.bytes.truncate(before);
                return Err(e.into());
            }
            one_line(&mut queue.bytes[before..]);
            queue.bytes.push(b'\n');
            Ok(())
        })
    }

    /// Counts a request of the other side. Returns false if too many are unanswered, so that it
    /// must be [refused](Mailbox::refuse).
    pub(crate) fn owe(&self, most: usize) -> bool {
        self.owed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| {
                (owed < most).then_some(owed + 1)
            })
            .is_ok()
    }

    /// Refuses a request that was not counted by [`Mailbox::owe`].
    pub(crate) fn refuse(&self, id: u64, reason: &str) {
        self.put_line(&reply_line(id, Err(reason)));
    }

    /// Queues the answer to a [counted](Mailbox::owe) request without waiting. It becomes a refusal
    /// if the other side does not read its messages.
    pub(crate) fn send_owed(&self, id: u64, json: &str) {
        self.owed.fetch_sub(1, Ordering::Relaxed);
        if self.queued() > MAX_OWED {
            self.refuse(id, "more than 16 MiB of messages wait to be read");
        } else {
            self.put_line(json);
        }
    }

    fn put_line(&self, json: &str) {
        let _ = self.post(false, |queue| {
            let before = queue.bytes.len();
            queue.bytes.extend_from_slice(json.as_bytes());
            one_line(&mut queue.bytes[before..]);
            queue.bytes.push(b'\n');
            Ok(())
        });
    }

    /// Repeats `attempt` until the queue has room.
    async fn when_room<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let room = self.room.notified();
            match attempt() {
                Err(Error::Full) => room.await,
                other => {
                    if other.is_ok() {
                        // There may be room for the next waiting sender, too.
                        self.room.notify_one();
                    }
                    return other;
                }
            }
        }
    }

    pub(crate) async fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<()> {
        match self.try_send(message) {
            Err(Error::Full) => self.when_room(|| self.try_send(message)).await,
            other => other,
        }
    }

    pub(crate) async fn send_handle<T: Serialize + ?Sized>(
        &self,
        message: &T,
        handle: Handle,
    ) -> Result<()> {
        let mut body = serde_json::to_vec(message)?;
        one_line(&mut body);
        let kind: HandleKind = handle.kind();
        let mut line = Vec::with_capacity(body.len() + 64);
        outgoing::user_handle(&mut line, kind, &body);
        let fd = match handle {
            Handle::TcpStream(s) => OwnedFd::from(s),
            Handle::TcpListener(s) => s.into(),
            Handle::UdpSocket(s) => s.into(),
            Handle::UnixStream(s) => s.into(),
            Handle::UnixListener(s) => s.into(),
        };
        // A Node receiver does not do this for itself, and a blocking socket would block it.
        troop_sys::socket::set_nonblocking(&fd, true)
            .map_err(Error::io("make the socket non-blocking"))?;
        self.send_line_with(line, fd, HANDLE_TRIES).await
    }

    /// Sends a line with a socket, up to `tries` times, and waits until it has arrived.
    pub(crate) async fn send_line_with(
        &self,
        line: Vec<u8>,
        handle: OwnedFd,
        tries: u8,
    ) -> Result<()> {
        let (settled, arrived) = oneshot::channel();
        let mut posted = Some(Posted { at: 0, line, handle, settled: Some(settled), tries });
        self.when_room(|| {
            self.post(true, |queue| {
                if let Some(mut posted) = posted.take() {
                    posted.at = queue.bytes.len();
                    queue.handles.push(posted);
                }
                Ok(())
            })
        })
        .await?;
        match arrived.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::HandleRefused),
            Err(_) => Err(Error::Closed),
        }
    }

    pub(crate) async fn request<Q: Serialize + ?Sized>(
        &self,
        question: &Q,
        timeout: Duration,
    ) -> Result<Message> {
        let id = self.last_request.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, reply) = oneshot::channel();
        let mut sender = Some(sender);
        let mut body = serde_json::to_vec(question)?;
        one_line(&mut body);
        let attempt = || {
            self.post(true, |queue| {
                queue.bytes.extend_from_slice(b"{\"troop\":\"request\",\"id\":");
                queue.bytes.extend_from_slice(id.to_string().as_bytes());
                queue.bytes.extend_from_slice(b",\"body\":");
                queue.bytes.extend_from_slice(&body);
                queue.bytes.extend_from_slice(b"}\n");
                queue.requests.extend(sender.take().map(|s| (id, s)));
                Ok(())
            })
        };
        let whole = async {
            self.when_room(attempt).await?;
            match reply.await {
                Ok(Ok(message)) => Ok(message),
                Ok(Err(reason)) => Err(Error::Refused(reason)),
                Err(_) => Err(Error::Closed),
            }
        };
        // Forgotten also when the caller drops this future.
        let _forget = Forget { mailbox: self, id };
        tokio::time::timeout(timeout, whole).await.unwrap_or(Err(Error::TimedOut(timeout)))
    }

    // ---- the owner of the channel ----

    /// Delivers a reply. Returns false if no caller waits for it.
    pub(crate) fn replied(&self, id: u64, result: std::result::Result<&str, String>) -> bool {
        let waiting = self.lock().requests.remove(&id);
        waiting
            .is_some_and(|sender| sender.send(result.map(|body| Message::new(body, None))).is_ok())
    }

    /// Takes everything out of the queue. The buffers of `into` are reused.
    pub(crate) fn take(&self, into: &mut Mail) {
        into.bytes.clear();
        into.handles.clear();
        let mut queue = self.lock();
        queue.rung = false;
        std::mem::swap(&mut queue.bytes, &mut into.bytes);
        std::mem::swap(&mut queue.handles, &mut into.handles);
        self.unwritten.fetch_add(into.bytes.len(), Ordering::Relaxed);
        self.unwritten_handles.fetch_add(into.handles.len(), Ordering::Relaxed);
    }

    /// Records the bytes and sockets that the owner has not written yet.
    pub(crate) fn set_unwritten(&self, bytes: usize, handles: usize) {
        let before = self.unwritten.swap(bytes, Ordering::Relaxed)
            + self.unwritten_handles.swap(handles, Ordering::Relaxed);
        if bytes < MAX_QUEUED && handles < self.most_handles && before > 0 {
            self.room.notify_waiters();
        }
    }

    /// Has senders wait while the result is held.
    pub(crate) fn hold(&self) -> HeldMailbox<'_> {
        HeldMailbox(self.lock())
    }

    /// The number of the last request.
    pub(crate) fn last_request(&self) -> u64 {
        self.last_request.load(Ordering::Relaxed)
    }

    /// Gives requests higher numbers than this one.
    pub(crate) fn go_on_after(&self, last_request: u64) {
        self.last_request.store(last_request, Ordering::Relaxed);
    }

    /// Makes the mailbox refuse all messages, because the worker does not read any.
    pub(crate) fn refuse_all(&self) {
        self.lock().is_unread = true;
    }

    /// Closes the mailbox and wakes all waiting callers. Returns the number of bytes that will
    /// never be sent.
    pub(crate) fn close(&self) -> usize {
        let mut queue = self.lock();
        queue.closed = true;
        let lost = queue.bytes.len() + self.unwritten.swap(0, Ordering::Relaxed);
        queue.bytes = Vec::new();
        queue.handles.clear();
        queue.requests.clear();
        drop(queue);
        self.room.notify_waiters();
        lost
    }
}

/// A mailbox that nothing is put into while this is held.
pub(crate) struct HeldMailbox<'a>(MutexGuard<'a, MailQueue>);

impl HeldMailbox<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.bytes.is_empty() && self.0.handles.is_empty()
    }
}

/// Ready-made JSON may contain line feeds between tokens, which would end the message; JSON strings
/// contain none.
fn one_line(json: &mut [u8]) {
    json.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
}

struct Forget<'a> {
    mailbox: &'a Mailbox,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.mailbox.lock().requests.remove(&self.id);
    }
}
