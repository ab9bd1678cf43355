//! How busy workers say that they are, and how often they are to say it.

use std::time::Duration;

use super::Primary;
use crate::id::{Time, WorkerId};
use crate::wire::outgoing;

/// How often a troop worker reports at most, unless it is told otherwise.
pub const DEFAULT_REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The same where nobody decides by it, so that it is only shown.
const DISPLAY_REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two reports of many workers, so that they do not cost more the more there are.
const MIN_REPORT_GAP: Duration = Duration::from_millis(1);

impl Primary {
    /// A worker reports how many connections it has open, and its own idea of its load. Cheap,
    /// because it can do so as often as it likes.
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

    /// How many descriptors a worker has open: the outcome of [`Action::Count`](super::Action::Count).
    pub fn counted(&mut self, now: Time, worker: WorkerId, descriptors: u32) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        // Before it listens it is about to open what it always has open.
        if state.reports || !state.memberships.iter().any(|membership| membership.listening) {
            return;
        }
        // The fewest that it ever had are those that are no connections.
        let fewest = *state
            .descriptors
            .insert(state.descriptors.map_or(descriptors, |fewest| fewest.min(descriptors)));
        state.open = descriptors - fewest;
        state.uncounted = 0;
        // Also what has waited for it: a pause may have come to its end meanwhile, and is seen only
        // once.
        self.refresh_and_pump(now, worker);
    }

    /// Tells the policies what workers have reported.
    pub(super) fn apply_reports(&mut self, now: Time) {
        while let Some(worker) = self.reported.pop() {
            if let Some(state) = self.workers.get_mut(&worker) {
                state.report_pending = false;
                self.refresh_and_pump(now, worker);
            }
        }
    }

    /// Tells a troop worker how often to report, if that is not what it knows.
    pub(super) fn pace_reports(&mut self, worker: WorkerId) {
        let Primary { workers, listeners, crowd, .. } = self;
        let Some(state) = workers.get_mut(&worker) else { return };
        if !state.batched || !state.connected || state.memberships.is_empty() {
            return;
        }
        let mut its =
            state.memberships.iter().filter_map(|membership| listeners.get(&membership.listener));
        let decides = its.any(|listener| listener.group.is_some() || listener.needs_counts);
        let every = if decides { DEFAULT_REPORT_INTERVAL } else { DISPLAY_REPORT_INTERVAL }
            .max(MIN_REPORT_GAP * *crowd);
        if std::mem::replace(&mut state.reports_every, every) != every {
            self.send(worker, |line| {
                outgoing::report(line, u64::try_from(every.as_millis()).unwrap_or(u64::MAX))
            });
        }
    }

    /// The number of workers has changed. Only when it is quite another one, everybody is told: a
    /// worker more in a reload is none.
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

    /// A worker that listens where the others do.
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

    /// Who was told to report how often, in order.
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
