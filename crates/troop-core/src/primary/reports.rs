//! Load reports of workers, and their interval.

use std::time::Duration;

use super::Primary;
use crate::id::{Time, WorkerId};
use crate::wire::outgoing;

/// Default minimum interval between two reports of a troop worker.
pub const DEFAULT_REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The interval where reports are only displayed, and no policy needs them.
const DISPLAY_REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between reports of different workers on average, which bounds the cost of many
/// workers.
const MIN_REPORT_GAP: Duration = Duration::from_millis(1);

impl Primary {
    /// Handles a worker's report of its open connections and load. Must be cheap, because a worker
    /// can report at any rate.
    pub(super) fn reported(&mut self, worker: WorkerId, open: Option<u32>, load: Option<u32>) {
        let Primary { workers, listeners, .. } = self;
        let Some(state) = workers.get_mut(&worker) else { return };
        state.reports |= open.is_some();
        state.open = open.unwrap_or(state.open);
        state.load = load.unwrap_or(state.load);
        let mut its =
            state.memberships.iter().filter_map(|membership| listeners.get(&membership.listener));
        if its.any(|listener| listener.needs_counts)
            && !std::mem::replace(&mut state.report_pending, true)
        {
            self.reported.push(worker);
        }
    }

    /// Handles the result of [`Action::Count`](super::Action::Count): the number of a worker's open
    /// descriptors.
    pub fn counted(&mut self, now: Time, worker: WorkerId, descriptors: u32) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        // A worker that does not listen yet is still opening descriptors other than connections.
        if state.reports || !state.memberships.iter().any(|membership| membership.listening) {
            return;
        }
        // The minimum so far is the number of descriptors that are not connections.
        let fewest = *state
            .descriptors
            .insert(state.descriptors.map_or(descriptors, |fewest| fewest.min(descriptors)));
        state.open = descriptors - fewest;
        state.uncounted = 0;
        // Dispatch waiting connections too: a pause may have ended in between, which is noticed
        // only once.
        self.refresh_and_pump(now, worker);
    }

    /// Handles what was seen of a worker that accepts connections by itself: how many are open, and
    /// how many of them are new.
    pub fn has_accepted(&mut self, worker: WorkerId, open: u32, new: u32) {
        if let Some(state) = self.workers.get_mut(&worker) {
            (state.reports, state.open) = (true, open);
            state.taken += u64::from(new);
        }
    }

    /// Updates the policies with the workers' reports.
    pub(super) fn apply_reports(&mut self, now: Time) {
        while let Some(worker) = self.reported.pop() {
            if let Some(state) = self.workers.get_mut(&worker) {
                state.report_pending = false;
                self.refresh_and_pump(now, worker);
            }
        }
    }

    /// Sends a troop worker its report interval, if it has changed.
    pub(super) fn pace_reports(&mut self, worker: WorkerId) {
        let Primary { workers, listeners, crowd, .. } = self;
        let Some(state) = workers.get_mut(&worker) else { return };
        if !state.batched || !state.connected || state.memberships.is_empty() {
            return;
        }
        let mut its =
            state.memberships.iter().filter_map(|membership| listeners.get(&membership.listener));
        let decides = its.any(|listener| !listener.is_own() || listener.needs_counts);
        let every = if decides { DEFAULT_REPORT_INTERVAL } else { DISPLAY_REPORT_INTERVAL }
            .max(MIN_REPORT_GAP * *crowd);
        if std::mem::replace(&mut state.reports_every, every) != every {
            self.send(worker, |line| {
                outgoing::report(line, u64::try_from(every.as_millis()).unwrap_or(u64::MAX))
            });
        }
    }

    /// Adjusts the report intervals after the number of workers has changed. Ignores small changes,
    /// such as the additional worker of a reload.
    pub(super) fn pace_all_reports(&mut self) {
        let crowd = u32::try_from(self.workers.len().next_power_of_two()).unwrap_or(u32::MAX);
        if crowd > self.crowd || crowd <= self.crowd / 4 {
            self.crowd = crowd;
            let all: Vec<WorkerId> = self.workers.keys().copied().collect();
            all.into_iter().for_each(|worker| self.pace_reports(worker));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ExitHow;
    use crate::id::ListenerId;
    use crate::policy::Scheduling;
    use crate::primary::{Action, Config};
    use crate::wire::incoming::parse;

    const NOW: Time = Time(1);

    fn say(primary: &mut Primary, worker: WorkerId, line: &str) {
        primary.message(NOW, worker, parse(line.as_bytes()).unwrap());
    }

    /// Adds a worker that listens on the common address.
    fn join(primary: &mut Primary, version: &str) -> WorkerId {
        let worker = primary.fork();
        primary.spawned(worker, worker.0, None, 100);
        say(
            primary,
            worker,
            &format!(r#"{{"cmd":"NODE_CLUSTER","act":"online"{version},"seq":0}}"#),
        );
        let question = r#"{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"address":null,"port":80,"addressType":4}"#;
        say(primary, worker, question);
        primary.bound(NOW, ListenerId(1), Ok(None));
        worker
    }

    /// Returns the workers that were sent a report interval, in order.
    fn told(primary: &mut Primary) -> Vec<(u32, u64)> {
        let mut told = Vec::new();
        while let Some(action) = primary.next_action() {
            if let Action::Send { worker, line } = action
                && let Ok(crate::wire::incoming::Incoming::Troop(
                    crate::wire::incoming::TroopMessage::Report(every),
                )) = parse(line.trim_ascii_end())
            {
                told.push((worker.0, every));
            }
        }
        told
    }

    #[test]
    fn workers_report_often_where_it_matters_and_seldom_where_they_are_many() {
        let mut primary = Primary::new(Config::default());
        join(&mut primary, r#","troop":1"#);
        assert_eq!(told(&mut primary), [(1, 1000)], "in turn: nobody decides by it");
        primary.set_scheduling(NOW, None, Scheduling::PowerOfTwo);
        assert_eq!(told(&mut primary), [(1, 100)]);
        let second = join(&mut primary, "");
        assert_eq!(told(&mut primary), [], "a program of Node does not report");
        primary.exited(NOW, second, ExitHow::Code(0));
        for _ in 1..128 {
            join(&mut primary, r#","troop":1"#);
        }
        let many = told(&mut primary);
        assert_eq!(
            (many.len(), many.last()),
            (128, Some(&(129, 128))),
            "at most one a millisecond from all together"
        );
        for _ in 0..3 {
            let successor = join(&mut primary, r#","troop":1"#);
            primary.exited(NOW, successor, ExitHow::Code(0));
        }
        let surge = told(&mut primary);
        assert_eq!(
            (surge.len(), surge.iter().all(|(_, every)| *every == 256)),
            (128 + 3, true),
            "all once, and each new one"
        );
        for worker in 10..=129 {
            primary.exited(NOW, WorkerId(worker), ExitHow::Code(0));
        }
        let few: Vec<_> = [1].into_iter().chain(3..=9).map(|worker| (worker, 100)).collect();
        let last = told(&mut primary);
        assert!(few.iter().all(|told| last.contains(told)), "{last:?}");
    }
}
