//! What happened while the app started, for those who wait for it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use troop::supervise::Progress;
use troop::text::counted;
use troop::{Cluster, Event, Events, WorkerHandle};

use crate::start::LAST_LINES_TIMEOUT;

/// What happened since the start, until all workers are ready.
pub(crate) struct Startup {
    state: Mutex<State>,
}

struct State {
    /// `None` once all workers are ready.
    events: Option<Events>,
    /// The worker that has ended last, if with a failure.
    last_failed: Option<WorkerHandle>,
    /// That a worker counts as ready which has not said so.
    assumed: Option<String>,
    /// The number of such workers.
    assumed_count: usize,
}

impl Startup {
    pub(super) fn new(cluster: &Cluster) -> Startup {
        let events = Some(cluster.events());
        let state = State { events, last_failed: None, assumed: None, assumed_count: 0 };
        Startup { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes events until all workers are ready.
    pub(super) async fn follow(&self, cluster: &Cluster) {
        let is_ready = tokio::select! {
            ready = cluster.ready() => ready.is_ok(),
            () = poll_fn(|context| self.state().poll(context)) => false,
        };
        let mut state = self.state();
        state.catch_up();
        state.events = None;
        if is_ready {
            state.last_failed = None;
        }
    }

    /// Returns that workers count as ready which have not said so, if there are any.
    pub(crate) fn hint(&self) -> Option<String> {
        let mut state = self.state();
        state.catch_up();
        let assumed = state.assumed.clone()?;
        Some(match state.assumed_count {
            0 | 1 => assumed,
            2 => format!("{assumed}, and so does 1 other worker"),
            count => format!("{assumed}, and so do {}", counted(count - 1, "other worker")),
        })
    }

    /// Returns the last lines of the worker that has failed last, if not all were ready since.
    pub(super) async fn last_lines(&self) -> Option<String> {
        let worker = {
            let mut state = self.state();
            state.catch_up();
            state.last_failed.clone()?
        };
        // Others may hold its standard error.
        let read = tokio::task::spawn_blocking(move || worker.last_stderr(LAST_LINES_TIMEOUT));
        read.await.ok()?.filter(|lines| !lines.trim().is_empty())
    }
}

impl State {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(events) = &mut self.events else { return Poll::Ready(()) };
            let next = pin!(events.recv()).poll(context);
            match next {
                Poll::Ready(Some(event)) => self.note(&event),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Notes the events that wait, so that what has happened before a snapshot is told with it.
    fn catch_up(&mut self) {
        while let Some(event) = self.events.as_mut().and_then(Events::try_recv) {
            self.note(&event);
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Exit { worker, exit, .. } if !exit.is_success() => {
                self.last_failed = Some(worker.clone());
            }
            Event::Supervision(progress @ Progress::AssumedReady { .. }) => {
                self.assumed_count += 1;
                self.assumed.get_or_insert_with(|| progress.to_string());
            }
            _ => {}
        }
    }
}
