//! Which search is due for what ended workers leave behind, with which signals, and what is given up.
//! A pass is a walk over all processes, by one search or by several that continue each other.

use std::io;
use std::time::Duration;

use troop_core::Time;
use troop_sys::process_group::HeldGroup;
use troop_sys::tree::{Found, MAX_TREES, ProcessTree, Search};

use crate::primary::driver::workers::orphans::{KILL, KILL_DELAY, TERMINATE};

/// Interval between passes while some processes run, and between attempts that fail.
const INTERVAL: Duration = Duration::from_millis(250);
/// The same while processes have longer than [`KILL_DELAY`] to end.
const LONG_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time for `SIGKILL` to end them all. The end of the cluster waits for [`KILL_DELAY`].
const MAX_KILL_TIME: Duration = Duration::from_secs(30);

/// What one pass does for one tree.
struct Part {
    signal: Option<i32>,
    /// Number of processes found so far.
    count: usize,
}

/// The tree of one ended worker.
struct Strays {
    tree: ProcessTree,
    /// The process group, unless it is empty.
    group: Option<HeldGroup>,
    /// Time of `SIGKILL`.
    kill_at: Time,
    /// Begin of the pass that sends `SIGTERM`.
    terminated_at: Option<Time>,
    is_killed: bool,
    /// Begin of the last pass with this tree.
    pass_at: Option<Time>,
    /// Its part of the current pass.
    part: Option<Part>,
    /// Number of processes that the last complete pass has found.
    count: usize,
}

impl Strays {
    /// Notes whether its group is empty. Returns whether there is anything to look for.
    fn check_group(&mut self) -> bool {
        if self.group.as_mut().is_some_and(|group| !group.signal(0)) {
            self.group = None;
        }
        if self.group.is_none() {
            self.tree.forget_group();
        }
        self.group.is_some() || self.tree.has_token()
    }

    fn is_kill_due(&self, now: Time, is_ending: bool) -> bool {
        let had_time = self.terminated_at.is_some_and(|at| at + KILL_DELAY <= now);
        self.kill_at <= now && (had_time || is_ending)
    }

    fn due_signal(&self, now: Time, is_ending: bool) -> Option<i32> {
        if self.is_kill_due(now, is_ending) {
            return Some(KILL);
        }
        self.terminated_at.is_none().then_some(TERMINATE)
    }

    /// Its part of the next search.
    fn search(&self) -> Option<Search> {
        let signal = self.part.as_ref()?.signal;
        // Workers of other clusters finish when theirs asks them to.
        let spares_nested = signal == Some(TERMINATE);
        Some(Search { tree: self.tree.clone(), signal, spares_nested })
    }

    fn is_over(&self, now: Time, is_ending: bool, has_failed: bool) -> bool {
        let end = self.kill_at + if is_ending { KILL_DELAY } else { MAX_KILL_TIME };
        // One that had to wait for the passes of others is killed at least once.
        end <= now && (self.is_killed || has_failed || end + KILL_DELAY <= now)
    }
}

/// The current pass.
struct Pass {
    begun_at: Time,
    /// Number of the last process that was checked.
    after: u32,
}

/// A search to make.
pub(super) struct Order {
    pub(super) searches: Vec<Search>,
    /// Processes up to this one were checked.
    pub(super) after: u32,
}

/// A tree that is not searched for any more, though processes of it may run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    pub(super) leader: u32,
    /// Number of processes that were seen.
    pub(super) count: usize,
}

/// The searches for all trees.
#[derive(Default)]
pub(super) struct Passes {
    of_workers: Vec<Strays>,
    pass: Option<Pass>,
    is_under_way: bool,
    search_at: Option<Time>,
    /// Why the last search has failed.
    failure: Option<io::Error>,
}

impl Passes {
    pub(super) fn is_empty(&self) -> bool {
        self.of_workers.is_empty()
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.search_at.filter(|_| !self.is_under_way)
    }

    pub(super) fn is_due(&self, now: Time) -> bool {
        self.next_deadline().is_some_and(|at| at <= now)
    }

    /// Adds the tree of a worker that has ended and its process group, which was sent `SIGTERM`, with
    /// the time of `SIGKILL`.
    pub(super) fn add(
        &mut self,
        now: Time,
        tree: ProcessTree,
        group: Option<HeldGroup>,
        kill_at: Time,
    ) {
        self.of_workers.push(Strays {
            tree,
            group,
            kill_at,
            terminated_at: None,
            is_killed: false,
            pass_at: None,
            part: None,
            count: 0,
        });
        // Attempts that fail are not made more often for it.
        if self.failure.is_none() || self.search_at.is_none() {
            self.search_at = Some(now);
        }
    }

    /// Has processes killed that have longer to end.
    pub(super) fn hurry(&mut self, now: Time) {
        for strays in &mut self.of_workers {
            strays.kill_at = strays.kill_at.min(now);
        }
        self.search_at = self.search_at.map(|at| at.min(now));
    }

    /// The interval between passes.
    fn interval(&self, now: Time) -> Duration {
        let is_soon = |strays: &Strays| strays.kill_at <= now + KILL_DELAY;
        if self.of_workers.iter().any(is_soon) { INTERVAL } else { LONG_INTERVAL }
    }

    /// Returns the search that is due. Its result must be told by [`found`](Passes::found) or
    /// [`failed`](Passes::failed).
    pub(super) fn next(&mut self, now: Time, is_ending: bool) -> Option<Order> {
        if !self.is_due(now) {
            return None;
        }
        if self.is_superseded(now, is_ending) {
            self.pass = None;
        }
        let after = match &self.pass {
            Some(pass) => pass.after,
            None => {
                self.of_workers.retain_mut(Strays::check_group);
                if self.is_empty() {
                    self.search_at = None;
                    return None;
                }
                self.begin(now, is_ending)
            }
        };
        self.search_at = None;
        self.is_under_way = true;
        let searches = self.of_workers.iter().filter_map(Strays::search).collect();
        Some(Order { searches, after })
    }

    /// Whether another pass is more urgent than the rest of the current one. One with signals goes
    /// to its end, so that all processes get them, unless the cluster's end waits for `SIGKILL`.
    fn is_superseded(&self, now: Time, is_ending: bool) -> bool {
        let parts = || self.of_workers.iter().filter_map(|strays| strays.part.as_ref());
        if parts().all(|part| part.signal.is_none()) {
            return parts().next().is_none()
                || self.of_workers.iter().any(|one| one.due_signal(now, is_ending).is_some());
        }
        let waits_for_kill = |strays: &Strays| {
            let signal = strays.part.as_ref().and_then(|part| part.signal);
            signal != Some(KILL) && strays.is_kill_due(now, is_ending)
        };
        is_ending && self.of_workers.iter().any(waits_for_kill)
    }

    fn begin(&mut self, now: Time, is_ending: bool) -> u32 {
        // Those first that have waited longest.
        self.of_workers.sort_by_key(|strays| strays.pass_at);
        for (number, strays) in self.of_workers.iter_mut().enumerate() {
            let signal = strays.due_signal(now, is_ending);
            strays.part = (number < MAX_TREES).then_some(Part { signal, count: 0 });
            if let (Some(KILL), Some(group)) = (signal, &mut strays.group) {
                // All of them at once, as they may be many.
                group.signal(KILL);
            }
        }
        self.pass = Some(Pass { begun_at: now, after: 0 });
        0
    }

    /// A search has ended.
    pub(super) fn found(&mut self, now: Time, found: &Found) {
        let Some(pass) = self.pass.as_mut().filter(|_| self.is_under_way) else { return };
        self.is_under_way = false;
        self.failure = None;
        let with_part = self.of_workers.iter_mut().filter(|strays| strays.part.is_some());
        for (strays, count) in with_part.zip(&found.counts) {
            strays.pass_at = Some(pass.begun_at);
            let Some(part) = &mut strays.part else { continue };
            part.count += count;
            match part.signal {
                Some(TERMINATE) => strays.terminated_at = Some(pass.begun_at),
                Some(_) => strays.is_killed = true,
                None => {}
            }
        }
        if let Some(last) = found.stopped_after {
            let gets_on = last > pass.after;
            pass.after = last;
            self.search_at = Some(if gets_on { now } else { now + INTERVAL });
            return;
        }
        self.pass = None;
        self.of_workers.retain_mut(|strays| {
            let Some(part) = strays.part.take() else { return true };
            strays.count = part.count;
            part.count > 0
        });
        let is_new = self.of_workers.iter().any(|strays| strays.pass_at.is_none());
        let next = if is_new { now } else { now + self.interval(now) };
        self.search_at = (!self.is_empty()).then_some(next);
    }

    /// A search has failed. It is repeated later, unless that would fail too.
    pub(super) fn failed(&mut self, now: Time, error: io::Error) {
        self.is_under_way = false;
        self.failure = Some(error);
        self.search_at = (!self.is_empty()).then(|| now + INTERVAL);
        // What is due may be another signal then.
        if !self.is_failure_final() && self.pass.as_ref().is_some_and(|pass| pass.after == 0) {
            self.pass = None;
            self.of_workers.iter_mut().for_each(|strays| strays.part = None);
        }
    }

    /// Whether there is no `/proc`, or the kernel does not answer.
    fn is_failure_final(&self) -> bool {
        self.failure.as_ref().is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::TimedOut)
        })
    }

    /// Returns the trees that are not searched for any more, and why the last search has failed.
    pub(super) fn give_up(
        &mut self,
        now: Time,
        is_ending: bool,
    ) -> (Vec<GivenUp>, Option<io::Error>) {
        let mut given_up = Vec::new();
        if self.is_under_way {
            return (given_up, None);
        }
        let (is_final, has_failed) = (self.is_failure_final(), self.failure.is_some());
        self.of_workers.retain(|strays| {
            let is_over =
                (is_final && strays.part.is_some()) || strays.is_over(now, is_ending, has_failed);
            if is_over {
                let so_far = strays.part.as_ref().map_or(0, |part| part.count);
                let count = strays.count.max(so_far);
                given_up.push(GivenUp { leader: strays.tree.leader(), count });
            }
            !is_over
        });
        if self.is_empty() {
            (self.pass, self.search_at) = (None, None);
        }
        let failure = self.failure.as_ref().filter(|_| !given_up.is_empty()).map(|error| {
            error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
        });
        if is_final || self.is_empty() {
            self.failure = None;
            self.pass = None;
        }
        (given_up, failure)
    }
}

#[cfg(test)]
mod tests {
    use troop_sys::tree::Token;

    use super::*;

    fn tree() -> ProcessTree {
        let token = Token::random().unwrap();
        ProcessTree::of(std::process::id(), Some(&token), false, 0).unwrap()
    }

    /// Passes for the tree of a worker that has ended at 0, and of another one.
    fn passes(trees: usize) -> Passes {
        let mut passes = Passes::default();
        (0..trees).for_each(|_| passes.add(Time(0), tree(), None, Time(2_000)));
        passes
    }

    fn found(counts: &[usize], stopped_after: Option<u32>) -> Found {
        Found { counts: counts.to_vec(), stopped_after }
    }

    /// The signals of the search that is due, and where it begins.
    #[track_caller]
    fn search(passes: &mut Passes, now: u64, is_ending: bool) -> (Vec<Option<i32>>, u32) {
        let order = passes.next(Time(now), is_ending).expect("a search is due");
        assert!(passes.next(Time(now), is_ending).is_none(), "one at a time");
        let spared = order.searches.iter().all(|one| one.spares_nested == (one.signal == Some(15)));
        assert!(spared, "the group was sent SIGTERM already");
        (order.searches.iter().map(|search| search.signal).collect(), order.after)
    }

    #[test]
    fn what_has_neither_a_group_nor_a_token_is_not_looked_for() {
        let mut passes = Passes::default();
        let tree = ProcessTree::of(std::process::id(), None, true, 0).unwrap();
        passes.add(Time(0), tree, None, Time(2_000));
        assert!(passes.next(Time(0), false).is_none());
        assert!(passes.is_empty() && passes.next_deadline().is_none());
    }

    fn exhausted() -> io::Error {
        io::Error::from_raw_os_error(11)
    }

    #[test]
    fn processes_are_terminated_then_killed_and_forgotten_once_gone() {
        let mut passes = passes(1);
        assert_eq!(search(&mut passes, 0, false), (vec![Some(15)], 0));
        passes.found(Time(5), &found(&[2], None));
        assert_eq!(passes.next_deadline(), Some(Time(255)));
        assert_eq!(search(&mut passes, 255, false), (vec![None], 0));
        passes.found(Time(260), &found(&[2], None));
        assert_eq!(search(&mut passes, 2_000, false), (vec![Some(9)], 0));
        passes.found(Time(2_001), &found(&[2], None));
        assert_eq!(search(&mut passes, 2_251, false), (vec![Some(9)], 0));
        passes.found(Time(2_252), &found(&[0], None));
        assert!(passes.is_empty() && passes.next_deadline().is_none());
        assert!(passes.give_up(Time(99_000), false).0.is_empty());
    }

    #[test]
    fn a_search_out_of_time_is_continued_with_the_same_signal() {
        let mut passes = passes(1);
        assert_eq!(search(&mut passes, 0, false), (vec![Some(15)], 0));
        passes.found(Time(1_000), &found(&[0], Some(700)));
        // Though the kill would be due, all get SIGTERM first.
        assert_eq!(search(&mut passes, 2_500, false), (vec![Some(15)], 700));
        passes.add(Time(2_600), tree(), None, Time(4_600));
        passes.found(Time(3_000), &found(&[40], Some(1_400)));
        assert_eq!(search(&mut passes, 3_000, false), (vec![Some(15)], 1_400));
        passes.found(Time(3_100), &found(&[2], None));
        let (mut signals, after) = search(&mut passes, 3_100, false);
        signals.sort_unstable();
        assert_eq!((signals, after), (vec![Some(9), Some(15)], 0));
    }

    #[test]
    fn a_pass_without_signals_makes_room_for_one_with() {
        let mut passes = passes(1);
        search(&mut passes, 0, false);
        passes.found(Time(0), &found(&[1], None));
        assert_eq!(search(&mut passes, 250, false), (vec![None], 0));
        passes.found(Time(1_250), &found(&[1], Some(700)));
        assert_eq!(search(&mut passes, 1_250, false), (vec![None], 700));
        passes.found(Time(2_250), &found(&[1], Some(800)));
        assert_eq!(search(&mut passes, 2_250, false), (vec![Some(9)], 0));
    }

    #[test]
    fn what_does_not_end_is_given_up_with_the_number_of_processes() {
        for (is_ending, end) in [(false, 32_000), (true, 4_000)] {
            let mut passes = passes(1);
            search(&mut passes, 0, is_ending);
            passes.found(Time(0), &found(&[7], None));
            search(&mut passes, 2_000, is_ending);
            passes.found(Time(3_000), &found(&[4], Some(700)));
            assert!(passes.give_up(Time(end - 1), is_ending).0.is_empty());
            let leader = std::process::id();
            let (given_up, failure) = passes.give_up(Time(end), is_ending);
            assert_eq!(given_up, [GivenUp { leader, count: 7 }]);
            assert!(failure.is_none() && passes.is_empty());
        }
    }

    #[test]
    fn the_end_of_the_cluster_waits_for_no_sigterm_of_thousands() {
        let mut passes = passes(1);
        search(&mut passes, 0, true);
        passes.found(Time(2_000), &found(&[100], Some(700)));
        assert_eq!(search(&mut passes, 2_000, true), (vec![Some(9)], 0));
        assert!(passes.give_up(Time(9_000), true).0.is_empty(), "a search is under way");
        passes.found(Time(9_000), &found(&[100], Some(900)));
        assert_eq!(passes.give_up(Time(9_000), true).0.len(), 1);
    }

    #[test]
    fn searches_that_fail_are_repeated_and_reported_once_when_given_up() {
        let mut passes = passes(2);
        let mut now = 0;
        while now < 32_000 {
            assert_eq!(search(&mut passes, now, false), (vec![Some(15); 2], 0));
            passes.failed(Time(now), exhausted());
            assert_eq!(passes.next_deadline(), Some(Time(now + 250)));
            let (given_up, failure) = passes.give_up(Time(now), false);
            assert!(given_up.is_empty() && failure.is_none());
            now += 250;
        }
        let (given_up, failure) = passes.give_up(Time(now), false);
        assert_eq!(given_up.len(), 2);
        assert_eq!(failure.and_then(|error| error.raw_os_error()), Some(11));
        assert!(passes.give_up(Time(now), false).1.is_none() && passes.is_empty());
    }

    #[test]
    fn processes_have_their_time_after_a_late_sigterm() {
        let mut passes = passes(1);
        search(&mut passes, 0, false);
        passes.failed(Time(0), exhausted());
        assert_eq!(search(&mut passes, 10_000, false), (vec![Some(15)], 0));
        passes.found(Time(10_100), &found(&[1], Some(700)));
        // What was begun goes on after a failure.
        search(&mut passes, 10_100, false);
        passes.failed(Time(10_200), exhausted());
        assert_eq!(search(&mut passes, 10_500, false), (vec![Some(15)], 700));
        passes.found(Time(10_600), &found(&[1], None));
        assert_eq!(search(&mut passes, 11_999, false), (vec![None], 0));
        passes.found(Time(11_999), &found(&[1], None));
        assert_eq!(search(&mut passes, 12_249, false), (vec![Some(9)], 0));
    }

    #[test]
    fn a_search_that_is_not_answered_is_not_repeated() {
        let mut passes = passes(1);
        search(&mut passes, 0, false);
        passes.add(Time(1), tree(), None, Time(2_001));
        passes.failed(Time(3_000), io::ErrorKind::TimedOut.into());
        let (given_up, failure) = passes.give_up(Time(3_000), false);
        assert_eq!(given_up.len(), 1);
        assert_eq!(failure.unwrap().kind(), io::ErrorKind::TimedOut);
        // The one that has come meanwhile is searched for.
        assert_eq!(search(&mut passes, 3_250, false), (vec![Some(15)], 0));
    }

    #[test]
    fn trees_beyond_those_of_one_pass_have_the_next() {
        let mut passes = passes(MAX_TREES + 1);
        assert_eq!(search(&mut passes, 0, false).0.len(), MAX_TREES);
        passes.found(Time(0), &found(&vec![1; MAX_TREES], None));
        let (signals, _) = search(&mut passes, 0, false);
        assert_eq!((signals[0], signals.len()), (Some(15), MAX_TREES));
    }
}
