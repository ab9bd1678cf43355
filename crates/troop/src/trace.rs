//! Spans and events for subscribers of the crate `tracing`, with the feature of that name. Without
//! the feature everything in this module is empty, and costs nothing.

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{Span, event};
#[cfg(feature = "tracing")]
pub(crate) use on::{Span, event};

#[cfg(feature = "tracing")]
mod on {
    use std::future::Future;

    use tracing::{Instrument as _, Level};
    use troop_core::WorkerId;
    use troop_core::supervise::Progress;

    use crate::event::Event;
    use crate::primary::WorkerHandle;

    /// The events of primaries.
    const PRIMARY: &str = "troop::primary";
    /// The events of workers.
    const WORKER: &str = "troop::worker";

    /// A span of the crate `tracing`.
    #[derive(Debug, Clone)]
    pub(crate) struct Span(tracing::Span);

    impl Span {
        /// What a primary does.
        pub(crate) fn of_primary() -> Span {
            Span(tracing::info_span!(target: PRIMARY, "primary"))
        }

        /// A worker's life, in its primary.
        pub(crate) fn of_worker(worker: WorkerId, slot: u32, pid: u32) -> Span {
            Span(tracing::info_span!(target: PRIMARY, "worker", worker = worker.0, slot, pid))
        }

        /// This process's life as a worker; without a number if it runs alone.
        pub(crate) fn of_this_worker(worker: Option<WorkerId>) -> Span {
            let slot = std::env::var("TROOP_SLOT").ok();
            let slot: Option<u32> = slot.and_then(|slot| slot.parse().ok());
            let worker = worker.map(|worker| worker.0);
            Span(tracing::info_span!(target: WORKER, parent: None, "worker", worker, slot))
        }

        /// Does this inside the span.
        pub(crate) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
            self.0.in_scope(work)
        }

        /// Runs this inside the span.
        pub(crate) fn wrap<F: Future>(
            &self,
            future: F,
        ) -> impl Future<Output = F::Output> + use<F> {
            future.instrument(self.0.clone())
        }

        pub(crate) fn get(&self) -> &tracing::Span {
            &self.0
        }

        /// A server of this worker's listens.
        pub(crate) fn listening(&self, address: &str) {
            tracing::info!(target: WORKER, parent: &self.0, address, "listening");
        }

        /// This worker is to finish: by its primary's wish or its own, or because its primary is
        /// gone.
        pub(crate) fn draining(&self, is_wanted: bool) {
            if is_wanted {
                tracing::info!(target: WORKER, parent: &self.0, "draining");
            } else {
                tracing::warn!(target: WORKER, parent: &self.0, "draining: the primary is gone");
            }
        }
    }

    /// An event of a primary, in the span of the worker that it is about.
    pub(crate) fn event(event: &Event) {
        let worker = worker_of(event);
        let span = worker.map_or_else(tracing::Span::current, |w| w.shared.span.get().clone());
        let (slot, worker) = (worker.map(WorkerHandle::slot), worker.map(|w| w.id().0));
        // The macros need each level as a constant.
        macro_rules! at {
            ($level:expr) => {
                tracing::event!(target: PRIMARY, parent: &span, $level, worker, slot, "{event}")
            };
        }
        match level_of(event) {
            Level::WARN => at!(Level::WARN),
            Level::INFO => at!(Level::INFO),
            _ => at!(Level::DEBUG),
        }
    }

    fn worker_of(event: &Event) -> Option<&WorkerHandle> {
        match event {
            Event::Fork { worker, .. }
            | Event::Online { worker, .. }
            | Event::Listening { worker, .. }
            | Event::Message { worker, .. }
            | Event::Disconnect { worker, .. }
            | Event::Exit { worker, .. }
            | Event::Request { worker, .. }
            | Event::Misbehaved { worker, .. }
            | Event::Stalled { worker, .. }
            | Event::Resumed { worker, .. }
            | Event::NotShared { worker, .. }
            | Event::Unhealthy { worker, .. } => Some(worker),
            Event::Error { worker, .. } => worker.as_ref(),
            _ => None,
        }
    }

    fn level_of(event: &Event) -> Level {
        match event {
            Event::Setup { .. } | Event::Message { .. } | Event::Request { .. } => Level::DEBUG,
            Event::Error { .. }
            | Event::Misbehaved { .. }
            | Event::Stalled { .. }
            | Event::Unhealthy { .. }
            | Event::NotSteered { .. }
            | Event::NotAccepted { .. }
            | Event::NotShared { .. }
            | Event::ListenerLost { .. }
            | Event::Supervision(
                Progress::ReloadFailed { .. }
                | Progress::RecycleFailed { .. }
                | Progress::GivingUp(_),
            ) => Level::WARN,
            _ => Level::INFO,
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use std::future::Future;

    use troop_core::WorkerId;

    use crate::event::Event;

    /// Nothing.
    #[derive(Debug, Clone)]
    pub(crate) struct Span;

    const _: () = assert!(size_of::<Span>() == 0);

    impl Span {
        #[inline]
        pub(crate) fn of_primary() -> Span {
            Span
        }

        #[inline]
        pub(crate) fn of_worker(_: WorkerId, _: u32, _: u32) -> Span {
            Span
        }

        #[inline]
        pub(crate) fn of_this_worker(_: Option<WorkerId>) -> Span {
            Span
        }

        #[inline]
        pub(crate) fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
            work()
        }

        #[inline]
        pub(crate) fn wrap<F: Future>(&self, future: F) -> F {
            future
        }

        #[inline]
        pub(crate) fn listening(&self, _: &str) {}

        #[inline]
        pub(crate) fn draining(&self, _: bool) {}
    }

    #[inline]
    pub(crate) fn event(_: &Event) {}
}
