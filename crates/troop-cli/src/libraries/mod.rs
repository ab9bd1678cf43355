//! Messages of libraries that expect a part of their own in the primary: under troop the program has
//! none. What such a part does is done here where it needs nothing of the program's, and is told
//! otherwise.
//!
//! | file | library |
//! | --- | --- |
//! | `kind.rs` | whose message is whose |
//! | `inbox.rs` | messages that wait for an answer, and what nobody takes |
//! | `socket_io.rs` | `@socket.io/cluster-adapter`: passes messages on between workers |
//! | `rate_limits.rs` | `rate-limiter-flexible`: counts for all workers |
//! | `log4js.rs` | log4js: passes log events on to the worker that writes them |
//!
//! Each message goes to subscribers of events, too, as if nobody answered it here.

mod inbox;
mod kind;
mod log4js;
mod rate_limits;
mod socket_io;

use std::sync::Arc;
use std::time::Instant;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use troop::WorkerHandle;

use crate::app::RunningApp;

pub(crate) use inbox::Inbox;
use inbox::Letter;
use kind::Kind;
pub(crate) use rate_limits::Options as LimiterOptions;
use rate_limits::{Answer, RateLimits};
use socket_io::Adapters;

/// Messages that are handled before other tasks of the thread have their turn.
const BURST: usize = 16;
/// The most answers that wait for their time (`execEvenly`); further ones do not wait.
const MAX_DELAYED: usize = 1024;

/// What keeps a message from being passed on: a name that Node itself gives a meaning.
type Forbidden = Option<IgnoredAny>;

impl RunningApp {
    /// Answers messages of libraries, as long as the app runs.
    pub(crate) async fn answer_libraries(self: Arc<Self>) {
        let inbox = self.inbox().clone();
        let mut adapters = Adapters::default();
        let mut limits = RateLimits::with(inbox.limiters());
        let delayed = Arc::new(Semaphore::new(MAX_DELAYED));
        let mut handled = 0_usize;
        loop {
            let letter = inbox.next().await;
            let Letter { kind, worker, text } = &letter;
            match kind {
                Kind::SocketIo => {
                    let workers = self.cluster().workers();
                    let ids: Vec<_> = workers.iter().map(WorkerHandle::id).collect();
                    let to = adapters.to(text, worker.id(), &ids);
                    let meant = workers.iter().filter(|worker| to.contains(&worker.id()));
                    meant.for_each(|worker| pass_on(&inbox, worker, text));
                }
                Kind::RateLimiter => {
                    if let Some(answer) = limits.answer(text, Instant::now()) {
                        if answer.is_new_limiter {
                            inbox.set_limiters(limits.options());
                            // The next engine must know it. If the cluster is over, nobody goes on.
                            let _ = self.cluster().note_changed();
                        }
                        give(&inbox, worker, answer, &delayed);
                    }
                }
                Kind::Log4js => {
                    let workers = self.cluster().workers();
                    match log4js::writer(text, worker, &workers) {
                        Some(writer) => pass_on(&inbox, writer, text),
                        None => inbox.tell_unclaimed(Kind::Log4js, worker, text),
                    }
                }
                Kind::Known | Kind::Other => {}
            }
            handled += 1;
            if handled.is_multiple_of(BURST) {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Sends an answer when it is due.
fn give(inbox: &Inbox, worker: &WorkerHandle, answer: Answer, delayed: &Arc<Semaphore>) {
    let place =
        answer.after.and_then(|after| Some((after, delayed.clone().try_acquire_owned().ok()?)));
    let Some((after, place)) = place else {
        return note_lost(inbox, worker, worker.try_send(&answer.message));
    };
    let worker = worker.clone();
    tokio::spawn(async move {
        let _place = place;
        tokio::time::sleep(after).await;
        // One that has ended needs it no more.
        let _ = worker.try_send(&answer.message);
    });
}

/// Sends a worker what another one has said, as it has said it.
fn pass_on(inbox: &Inbox, to: &WorkerHandle, text: &str) {
    if let Ok(message) = serde_json::from_str::<&RawValue>(text) {
        note_lost(inbox, to, to.try_send(message));
    }
}

fn note_lost(inbox: &Inbox, to: &WorkerHandle, sent: troop::Result<()>) {
    if matches!(sent, Err(troop::Error::Full)) {
        inbox
            .tell_lost(to, "does not read its messages, and misses some of those of other workers");
    }
}
