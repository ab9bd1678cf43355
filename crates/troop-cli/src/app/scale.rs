//! Changes the number of workers, and waits for them.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use troop::supervise::{Cause, NotReady, Operation, Progress};
use troop::text::counted;
use troop::{Error, Event, Events, WorkerHandle, WorkerId};

use super::{RunningApp, failed};
use crate::control::protocol::Failure;
use crate::in_use::with_tip;
use crate::records::Scaled;
use crate::start::{LAST_LINES_TIMEOUT, READY_MARGIN, quoted, start_timeout};

/// Times that each new slot may lose its worker, on average, until it counts as one that does not
/// become ready.
const MAX_ENDS: usize = 2;

/// The end of an error: the state of the app, and what to look at.
const NEXT_STEPS: &str = "\nit keeps running: see `troop show` and `troop logs`";

/// The workers that are started while a client waits for them.
struct NewWorkers {
    events: Events,
    /// The newest worker that there was before.
    newest_before: Option<WorkerId>,
    /// The slots that get a worker.
    slots: usize,
    /// Ends of new workers, and starts that failed.
    ends: usize,
    /// The new worker that ended last.
    last_failed: Option<WorkerHandle>,
    /// How the last one ended, or why it was not started.
    last_end: Option<String>,
}

impl NewWorkers {
    /// Waits until they keep ending.
    async fn keep_ending(&mut self) {
        while self.ends < MAX_ENDS * self.slots.max(1) {
            let Some(event) = self.events.recv().await else { return std::future::pending().await };
            match event {
                Event::Exit { worker, .. } if Some(worker.id()) > self.newest_before => {
                    self.last_failed = Some(worker);
                }
                Event::Supervision(Progress::Restarting { cause, .. }) => {
                    let text = match cause {
                        Cause::Ended(worker, how) if Some(worker) > self.newest_before => {
                            format!("worker {worker} ended with {how}")
                        }
                        Cause::NotStarted(reason) => {
                            self.last_failed = None;
                            format!("a worker could not be started: {reason}")
                        }
                        _ => continue,
                    };
                    self.ends += 1;
                    self.last_end = Some(text);
                }
                _ => {}
            }
        }
    }

    /// Says how the last one ended, with its last lines.
    fn last_end(&self) -> String {
        let Some(end) = &self.last_end else { return String::new() };
        let lines =
            self.last_failed.as_ref().and_then(|worker| worker.last_stderr(LAST_LINES_TIMEOUT));
        format!("; the last unexpected end: {end}{}", quoted(lines.as_deref()))
    }
}

impl RunningApp {
    /// Returns the number of workers if that is not the one of the configuration. None at all are
    /// left to what has ended them, and a job has as many as it runs.
    pub(super) fn scaled(&self, wanted: Option<usize>) -> Option<Scaled> {
        let instead_of = self.resolved().workers();
        let workers = wanted.filter(|wanted| *wanted > 0 && *wanted != instead_of)?;
        self.started.app.cron.is_none().then_some(Scaled { workers, instead_of })
    }

    /// Changes the number of workers, to `workers` or by `by`. With `wait`, answers when as many are
    /// ready and the others gone, or fails with the reason.
    pub(crate) async fn scale(
        &self,
        workers: Option<usize>,
        by: i64,
        wait: bool,
    ) -> Result<Value, Failure> {
        let before = self.cluster.snapshot().await.map_err(|e| failed(&e))?.wanted.unwrap_or(0);
        let after = workers.unwrap_or_else(|| {
            before.saturating_add_signed(isize::try_from(by).unwrap_or(isize::MAX))
        });
        if workers.is_none() && after == 0 {
            let text = format!(
                "{by} would leave none of {}; `troop scale 0` ends all and keeps the listeners",
                counted(before, "worker")
            );
            return Err(Failure::new("bad-request", text));
        }
        if wait {
            let resolved = self.resolved();
            let limit = start_timeout(&resolved).max(resolved.grace() + READY_MARGIN);
            let new_workers = self.new_workers(after.saturating_sub(before));
            self.wait_for(self.cluster.scale(after), new_workers, limit).await?;
        } else {
            self.begin_scaling(after).await?;
        }
        Ok(json!({ "before": before, "workers": after }))
    }

    /// Changes the number of workers, and waits until all of them are ready, but for none that is
    /// too many: as for a reload, which they take part in.
    pub(super) async fn scale_for_reload(
        &self,
        before: usize,
        workers: usize,
    ) -> Result<(), Failure> {
        let new_workers = self.new_workers(workers.saturating_sub(before));
        self.begin_scaling(workers).await?;
        if workers <= before {
            return Ok(());
        }
        self.wait_for(self.cluster.ready(), new_workers, start_timeout(&self.resolved())).await
    }

    fn new_workers(&self, slots: usize) -> NewWorkers {
        NewWorkers {
            events: self.cluster.events(),
            newest_before: self.cluster.workers().iter().map(WorkerHandle::id).max(),
            slots,
            ends: 0,
            last_failed: None,
            last_end: None,
        }
    }

    /// Waits for an operation until it is over, its new workers keep ending, or the time is up.
    async fn wait_for<T, E: Into<Error>>(
        &self,
        operation: Operation<T, E>,
        mut new_workers: NewWorkers,
        limit: Duration,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let why = tokio::select! {
            biased;
            result = operation => match result.map_err(Into::into) {
                Ok(_) => return Ok(()),
                Err(e @ Error::Settings(_)) => return Err(Failure::new("bad-request", e.chain())),
                Err(Error::NotReady(why)) => match *why {
                    NotReady::Ended { slot, how, .. } => {
                        format!("because the worker of slot {slot} has ended for good: {how}")
                    }
                    NotReady::Stopping | NotReady::Over => {
                        return Err(Failure::new("over", "the app is stopping"));
                    }
                    why => return Err(failed(&why.into())),
                },
                Err(e) => return Err(failed(&e)),
            },
            () = new_workers.keep_ending() => "and the new ones keep ending".into(),
            () = sleep_until(deadline) => format!("after {limit:.0?}"),
        };
        let snapshot = self.cluster.snapshot().await.map_err(|e| failed(&e))?;
        let (ready, wanted) = (snapshot.ready, snapshot.wanted.unwrap_or(0));
        let surplus = snapshot.workers.len().saturating_sub(wanted);
        let state = if ready < wanted {
            format!(
                "not all workers are ready, {ready} of {wanted}, {why}{}",
                new_workers.last_end()
            )
        } else {
            format!("{} still drain, {why}", counted(surplus, "worker"))
        };
        let text = format!("{}: {state}", self.name);
        Err(Failure::new("failed", with_tip(text) + NEXT_STEPS))
    }

    /// Changes the number of workers, and does not wait for them.
    pub(super) async fn begin_scaling(&self, workers: usize) -> Result<(), Failure> {
        let refused = tokio::select! {
            biased;
            result = self.cluster.scale(workers) => result.err(),
            () = std::future::ready(()) => None,
        };
        match refused {
            Some(e @ Error::Settings(_)) => Err(Failure::new("bad-request", e.chain())),
            _ => Ok(()),
        }
    }
}
