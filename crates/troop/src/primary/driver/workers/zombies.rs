//! Ended children that nobody waits for: orphans, where this is process 1, those that a worker has
//! made this process's own (`CLONE_PARENT`), and those of the program that has executed this one. Others in this process may wait for children that
//! they have started, so those are reaped that are still there at the second look.

use std::collections::BTreeSet;
use std::time::Duration;

use troop_core::Time;
use troop_sys::{Bequeathed, process};

/// Time between looks: those who wait for a child reap it much sooner.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Reaps them, if that is wanted.
#[derive(Default)]
pub(super) struct Zombies {
    is_on: bool,
    check_at: Option<Time>,
    /// Those of the last look.
    seen: BTreeSet<u32>,
    /// Those that the program before has had look at others.
    bequeathed: Bequeathed,
}

impl Zombies {
    pub(super) fn turn_on(&mut self) {
        self.is_on = true;
    }

    /// The primary begins, perhaps in a process that has had children before.
    pub(super) fn begin(&mut self, now: Time) {
        self.bequeathed = Bequeathed::find();
        if !self.bequeathed.are_gone() {
            self.check_at.get_or_insert(now + CHECK_INTERVAL);
        }
    }

    /// A child has ended.
    pub(super) fn notice(&mut self, now: Time) {
        if self.is_on {
            self.check_at.get_or_insert(now + CHECK_INTERVAL);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.check_at
    }

    /// Looks, if that is due. `is_worker` claims children that are reaped elsewhere.
    pub(super) fn tick(&mut self, now: Time, is_worker: impl Fn(u32) -> bool) {
        if self.check_at.is_none_or(|at| at > now) {
            return;
        }
        self.check_at = (!self.bequeathed.are_gone()).then(|| now + CHECK_INTERVAL);
        if !self.is_on {
            return;
        }
        if !process::sees_itself() {
            process::reap_orphans(is_worker);
            return;
        }
        let ended: BTreeSet<u32> =
            process::ended_children().into_iter().filter(|pid| !is_worker(*pid)).collect();
        let (over, new): (BTreeSet<u32>, BTreeSet<u32>) =
            ended.into_iter().partition(|pid| self.seen.contains(pid));
        over.into_iter().for_each(process::reap_child);
        if !new.is_empty() {
            self.check_at = Some(now + CHECK_INTERVAL);
        }
        self.seen = new;
    }
}
