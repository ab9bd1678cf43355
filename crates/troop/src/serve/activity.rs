//! Whether a connection is between two requests, as seen from outside of the HTTP server.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::Notify;

use super::waiting::Place;
use crate::worker::Movable;

/// The state of one connection; its server, its stream and its answers write into it.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Whether the next answer announces that the connection will be closed.
    pub(super) is_last: AtomicBool,
    /// Whether the stream is suspended, to see whether the server has unfinished work.
    pub(super) probing: AtomicBool,
    /// Requests whose answer has not ended.
    answering: AtomicUsize,
    /// Whether a request has arrived since the server began with the stream.
    has_begun: AtomicBool,
    /// Whether bytes have arrived since then.
    has_read: AtomicBool,
    /// Whether the stream is full, so that a part of an answer is unwritten.
    is_blocked: AtomicBool,
    /// Whether the primary has rejected the connection.
    refused: AtomicBool,
    changed: Notify,
    /// Whether the primary wants it for another worker, although this one stays.
    is_requested: AtomicBool,
    requested: Notify,
    /// Where it is among the connections that can be replaced, if these are known.
    place: Option<Arc<Place>>,
}

impl Activity {
    /// Returns the activity of a connection that can be replaced, if there is a place.
    pub(super) fn at(place: Option<Arc<Place>>) -> Activity {
        Activity { place, ..Activity::default() }
    }

    /// Records whether the client keeps the connection waiting.
    fn note_waiting(&self) {
        if let Some(place) = &self.place {
            let is_answering = self.answering.load(Acquire) > 0;
            place.set_waiting(!is_answering || self.is_blocked.load(Acquire));
        }
    }

    /// Records a request, which counts as being answered until the returned value is dropped.
    pub(super) fn begin(self: &Arc<Activity>) -> Answering {
        self.answering.fetch_add(1, AcqRel);
        self.has_begun.store(true, Release);
        self.note_waiting();
        Answering(self.clone())
    }

    /// Records that bytes were read from the stream.
    pub(super) fn read(&self) {
        if !self.has_read.load(Relaxed) {
            self.has_read.store(true, Release);
        }
    }

    /// Records that the stream was written to, or was full.
    pub(super) fn written(&self, is_blocked: bool) {
        if self.is_blocked.load(Relaxed) != is_blocked {
            self.is_blocked.store(is_blocked, Release);
            if !is_blocked {
                self.changed.notify_one();
            }
            self.note_waiting();
        }
    }

    /// Whether a part of a request's head has arrived, but not all of it.
    pub(super) fn has_half_head(&self) -> bool {
        self.has_read.load(Acquire) && !self.has_begun.load(Acquire)
    }

    fn is_idle(&self) -> bool {
        self.answering.load(Acquire) == 0 && !self.is_blocked.load(Acquire) && !self.has_half_head()
    }

    /// Waits until no request is being answered and all output is written.
    pub(super) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_idle() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the primary wants the connection for another worker, although this one stays.
    pub(super) async fn requested(&self) {
        while !self.is_requested.load(Acquire) {
            self.requested.notified().await;
        }
    }

    /// Records that the connection was offered to the primary.
    pub(super) fn offered(&self) {
        self.is_requested.store(false, Release);
    }

    /// Resets the state for another server on the same stream.
    pub(super) fn restart(&self) {
        for flag in [&self.has_begun, &self.has_read, &self.is_blocked] {
            flag.store(false, Release);
        }
    }

    /// Records that the primary has rejected the connection.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Relaxed);
    }

    /// Whether the primary has rejected the connection, so that it may have to be closed.
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }

    /// Waits until the connection may be offered to the primary: immediately, unless it was
    /// rejected before.
    pub(super) async fn wait_for_offer(&self, pause: Duration) {
        if self.was_refused() {
            tokio::time::sleep(pause).await;
        }
    }
}

impl Movable for Activity {
    fn is_idle(&self) -> bool {
        Activity::is_idle(self)
    }

    fn request_move(&self) {
        self.is_requested.store(true, Release);
        self.requested.notify_one();
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        if self.0.answering.fetch_sub(1, AcqRel) == 1 {
            self.0.changed.notify_one();
            self.0.note_waiting();
        }
    }
}

pin_project! {
    /// The body of an answer; it counts until the server has read all of it.
    pub(super) struct Answer<B> {
        #[pin]
        body: B,
        answering: Answering,
    }
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, answering: Answering) -> Answer<B> {
        Answer { body, answering }
    }
}

impl<B: Body> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
