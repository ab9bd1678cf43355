//! What supervision wants of JavaScript, and what JavaScript asks of it.

use std::sync::Arc;
use std::time::Duration;

use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Result, Status};
use napi_derive::napi;
use troop::embed::{Start, Starter};
use troop::supervise::{
    Cause, GiveUp, Progress, ReadyWhen, Reload, ReloadFailed, Reloaded, ReplaceFailure,
    ReplacePolicy, RestartPolicy,
};
use troop::{Event, WorkerId};

use crate::refused;

/// The most time that a number of milliseconds stands for: ten years.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Called with each order.
pub(crate) type Orders = ThreadsafeFunction<Order, (), Order, Status, false, true>;

/// What JavaScript is to do, or is told, in the order in which it happened.
#[napi(object)]
#[derive(Debug, Default)]
pub struct Order {
    /// - `start`: fork a worker for `slot`, after the end of the one that it `follows`, and adopt
    ///   it with `number`;
    /// - `draining`: `worker` has been told to leave;
    /// - `gave-up`: no more workers are started after so many `restarts`; the last one that ended
    ///   was `worker`;
    /// - `reloaded`: a reload is over.
    pub kind: String,
    /// The number of a start.
    pub number: Option<u32>,
    /// The slot of the worker to be started.
    pub slot: Option<u32>,
    /// The worker that it follows, where that has ended.
    pub follows: Option<u32>,
    /// A worker.
    pub worker: Option<u32>,
    /// Restarts before supervision has given up.
    pub restarts: Option<u32>,
    /// Workers that a reload has replaced.
    pub replaced: Option<u32>,
    /// Why a reload has failed.
    pub failure: Option<Failure>,
}

/// Why a reload has failed.
#[napi(object)]
#[derive(Debug, Default)]
pub struct Failure {
    /// `ended`, `not-started`, `not-ready`, `not-listening`, `told-to-leave`, `under-way` or
    /// `other`.
    pub kind: String,
    /// The new worker that did not take over.
    pub worker: Option<u32>,
    /// It had been ready before it ended.
    pub was_ready: Option<bool>,
    /// The address that would have been lost, or why a worker could not be started, or all of it.
    pub text: String,
}

/// What supervision is about.
#[napi(object)]
#[derive(Debug)]
pub struct Supervision {
    /// Workers are still to come.
    pub expects_workers: bool,
    /// No more workers are started, until the program forks.
    pub has_given_up: bool,
}

/// When workers that end are followed by others. Times are in milliseconds.
#[napi(object)]
#[derive(Debug)]
pub struct Respawn {
    /// The first delay of a slot.
    pub delay: f64,
    /// The longest one.
    pub max_delay: f64,
    /// A worker that was ready for this long is followed at once.
    pub min_uptime: f64,
    /// So many restarts of workers, none of which was ever ready...
    pub restarts: Option<f64>,
    /// ...within this time are enough.
    pub within: f64,
}

/// How a reload replaces workers. Times are in milliseconds.
#[napi(object)]
#[derive(Debug)]
pub struct ReloadOptions {
    /// `listening`, `online` or `message`.
    pub ready: String,
    /// How long the first new worker must have been ready.
    pub min_uptime: f64,
    /// How long a new worker may take to be ready.
    pub timeout: f64,
    /// How long an old one may take to finish.
    pub kill_timeout: f64,
    /// How many workers there may be more than usual.
    pub surge: f64,
    /// All new workers are ready before the first old one leaves.
    pub all_or_none: bool,
    /// The new workers need not listen where the old ones do.
    pub allow_moved: bool,
}

fn time(milliseconds: f64) -> Duration {
    Duration::try_from_secs_f64(milliseconds.max(0.0) / 1000.0)
        .map_or(MAX_TIME, |t| t.min(MAX_TIME))
}

fn count(number: f64) -> usize {
    // Saturates, and infinity is the largest number.
    number as usize
}

impl From<Respawn> for RestartPolicy {
    fn from(respawn: Respawn) -> RestartPolicy {
        let policy = RestartPolicy::new(0)
            .first_delay(time(respawn.delay))
            .max_delay(time(respawn.max_delay))
            .min_uptime(time(respawn.min_uptime))
            .window(time(respawn.within));
        match respawn.restarts {
            // The end that is not followed counts too.
            Some(restarts) => policy.max_ends(count(restarts).saturating_add(1)),
            None => policy,
        }
    }
}

impl ReloadOptions {
    pub(crate) fn reload(&self) -> Result<Reload> {
        let ready_when = match self.ready.as_str() {
            "listening" => ReadyWhen::Listening,
            "online" => ReadyWhen::Online,
            "message" => ReadyWhen::Message,
            other => return Err(refused(format!("a reload cannot wait for {other}"))),
        };
        let policy = ReplacePolicy::default()
            .ready_when(ready_when)
            .ready_timeout(time(self.timeout))
            .min_ready_time(time(self.min_uptime))
            .max_surge(count(self.surge))
            .all_or_none(self.all_or_none);
        let reload = Reload::new().allow_moved(self.allow_moved);
        Ok(reload.replace(policy, time(self.kill_timeout)))
    }
}

fn number(count: usize) -> Option<u32> {
    u32::try_from(count).ok()
}

impl Order {
    fn new(kind: &str) -> Order {
        Order { kind: kind.into(), ..Order::default() }
    }

    pub(crate) fn of_event(event: &Event) -> Option<Order> {
        let Event::Supervision(Progress::GivingUp(why)) = event else { return None };
        let GiveUp::NeverReady { ends, cause, .. } = why else { return None };
        let worker = match cause {
            Cause::Ended(WorkerId(id), _) => Some(*id),
            Cause::NotStarted(_) => None,
        };
        // After the last end there was none.
        let restarts = number(ends.saturating_sub(1));
        Some(Order { worker, restarts, ..Order::new("gave-up") })
    }

    pub(crate) fn reloaded(result: std::result::Result<Reloaded, ReloadFailed>) -> Order {
        let order = Order::new("reloaded");
        match result {
            Ok(done) => Order { replaced: number(done.replaced), ..order },
            Err(ReloadFailed::Failed { reason, replaced, .. }) => {
                Order { replaced: number(replaced), failure: Some(Failure::of(&reason)), ..order }
            }
            Err(refused) => {
                let kind = match refused {
                    ReloadFailed::UnderWay => "under-way",
                    ReloadFailed::Stopped | ReloadFailed::Stopping => "told-to-leave",
                    _ => "other",
                };
                let text = refused.to_string();
                let failure = Failure { kind: kind.into(), text, ..Failure::default() };
                Order { replaced: Some(0), failure: Some(failure), ..order }
            }
        }
    }
}

impl Failure {
    fn of(reason: &ReplaceFailure) -> Failure {
        let (kind, worker, text) = match reason {
            ReplaceFailure::Ended { worker, .. } => ("ended", Some(*worker), reason.to_string()),
            ReplaceFailure::NotStarted { reason } => ("not-started", None, reason.clone()),
            ReplaceFailure::NotReady { worker, .. } => ("not-ready", *worker, reason.to_string()),
            ReplaceFailure::NotListening { worker, address, .. } => {
                ("not-listening", Some(*worker), address.to_string())
            }
            _ => ("other", None, reason.to_string()),
        };
        let was_ready = match reason {
            ReplaceFailure::Ended { was_ready, .. } => Some(*was_ready),
            _ => None,
        };
        Failure { kind: kind.into(), worker: worker.map(|WorkerId(id)| id), was_ready, text }
    }
}

/// Passes on what supervision wants.
pub(crate) struct Asker(pub(crate) Arc<Orders>);

impl Asker {
    fn pass(&self, order: Order) {
        self.0.call(order, ThreadsafeFunctionCallMode::NonBlocking);
    }
}

impl Starter for Asker {
    fn start(&mut self, start: Start) {
        self.pass(Order {
            number: Some(start.number),
            slot: Some(start.slot),
            follows: start.follows.map(|WorkerId(id)| id),
            ..Order::new("start")
        });
    }

    fn draining(&mut self, worker: WorkerId) {
        self.pass(Order { worker: Some(worker.0), ..Order::new("draining") });
    }
}
