//! Workers that a program starts of its own accord.

use super::*;

impl Simulation {
    /// Of a program whose workers come back as this policy says.
    fn embedded(policy: RestartPolicy) -> Simulation {
        let mut supervisor = Supervisor::embedded(7);
        supervisor.restart_as(policy, false);
        Simulation::around(supervisor)
    }

    /// The program forks.
    fn fork(&mut self) -> u32 {
        self.next_worker += 1;
        self.supervisor.adopt(self.now, WorkerId(self.next_worker));
        self.carry_out();
        self.next_worker
    }

    /// Workers that are in slots.
    fn all(&self) -> Vec<u32> {
        let members = self.supervisor.slots.iter().filter_map(|state| state.current);
        members.map(|member| member.worker.0).collect()
    }

    fn gave_up(&self) -> usize {
        self.progress.iter().filter(|step| matches!(step, Progress::GivingUp(_))).count()
    }

    fn reload_as(&mut self, policy: ReplacePolicy) -> Ticket {
        self.supervisor.reload_as(policy, 30 * SECOND);
        self.request(Request::Reload(vec![]))
    }
}

fn policy() -> RestartPolicy {
    RestartPolicy::new(0).max_ends(4).first_delay(SECOND / 10)
}

fn at_once() -> ReplacePolicy {
    ReplacePolicy::default().min_ready_time(Duration::ZERO).ready_when(ReadyWhen::Listening)
}

fn failed(w: &Simulation, ticket: Ticket) -> (usize, Option<&ReplaceFailure>) {
    match w.answer(ticket) {
        Some(Answer::Reload(Err(ReloadFailed::Failed { reason, replaced, .. }))) => {
            (*replaced, Some(reason))
        }
        other => panic!("it has not failed: {other:?}"),
    }
}

#[test]
fn a_worker_that_the_program_starts_is_a_slot_until_it_is_told_to_leave() {
    let mut w = Simulation::embedded(policy());
    let (first, second) = (w.fork(), w.fork());
    w.up(first);
    w.up(second);
    w.pass(5 * SECOND);
    w.exit(first, 1);
    assert_eq!(w.all(), [3, 2], "it is followed at once");
    w.supervisor.release(w.now, WorkerId(second));
    w.exit(second, 0);
    w.pass(60 * SECOND);
    assert_eq!((w.all(), w.supervisor.wanted()), (vec![3], 1));
    assert!(!w.supervisor.expects_workers());
    assert_eq!(w.fork(), 4);
    assert_eq!(w.of(1), 4, "it has the slot that was free");
}

#[test]
fn a_worker_that_the_program_ends_after_its_death_has_no_successor_either() {
    let mut w = Simulation::embedded(policy());
    let (first, second) = (w.fork(), w.fork());
    w.up(second);
    w.exit(first, 1);
    w.supervisor.release_vacant(w.now, Slot(1));
    w.supervisor.release_vacant(w.now, Slot(0));
    w.pass(60 * SECOND);
    assert_eq!((w.all(), w.supervisor.wanted()), (vec![second], 1));
    assert!(!w.supervisor.expects_workers());
    assert_eq!((w.fork(), w.of(0)), (3, 3), "it has the slot that was free");
}

#[test]
fn without_a_policy_nobody_is_followed_and_a_reload_replaces_those_who_are_there() {
    let mut w = Simulation::around(Supervisor::embedded(7));
    let (first, second) = (w.fork(), w.fork());
    w.up(first);
    w.up(second);
    w.exit(first, 1);
    w.pass(60 * SECOND);
    assert_eq!((w.all(), w.forks), (vec![second], 0));
    let reload = w.reload_as(at_once());
    w.up(3);
    assert_eq!(w.all(), [3]);
    let done = Reloaded { replaced: 1, ..Reloaded::default() };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Ok(done))));
}

#[test]
fn giving_up_ends_nobody_and_a_fork_of_the_programs_begins_anew() {
    let mut w = Simulation::embedded(policy());
    let silent = w.fork();
    let dying = w.fork();
    w.exit(dying, 1);
    for _ in 0..3 {
        w.pass(SECOND);
        w.exit(w.next_worker, 1);
    }
    assert_eq!((w.gave_up(), w.all()), (1, vec![silent]));
    assert!(w.supervisor.has_given_up() && !w.supervisor.expects_workers());
    w.exit(silent, 1);
    w.pass(60 * SECOND);
    assert_eq!((w.gave_up(), w.all(), &w.asked), (1, vec![], &vec![]), "nobody was told to leave");
    let again = w.fork();
    assert!(!w.supervisor.has_given_up());
    w.exit(again, 1);
    w.pass(SECOND);
    assert_eq!(w.all(), [w.next_worker]);
}

#[test]
fn workers_of_a_program_that_are_silent_or_have_closed_their_channels_are_left_alone() {
    let mut w = Simulation::embedded(policy());
    let (ready, silent) = (w.fork(), w.fork());
    w.up(ready);
    w.disconnect(ready);
    w.pass(3600 * SECOND);
    assert_eq!((w.all(), &w.asked), (vec![ready, silent], &vec![]));
}

#[test]
fn a_reload_that_is_all_or_none_replaces_nobody_before_the_last_is_ready() {
    let mut w = Simulation::embedded(policy());
    for worker in 1..=3 {
        assert_eq!(w.fork(), worker);
        w.up(worker);
    }
    let all_or_none = || at_once().all_or_none(true).ready_timeout(5 * SECOND);
    let reload = w.reload_as(all_or_none());
    assert_eq!(w.forks, 3, "all start at once");
    w.up(4);
    w.up(5);
    assert_eq!((w.all(), w.answer(reload)), (vec![1, 2, 3], None));
    w.exit(6, 9);
    let (replaced, reason) = failed(&w, reload);
    assert!(matches!(
        reason,
        Some(ReplaceFailure::Ended { worker: WorkerId(6), was_ready: false, .. })
    ));
    assert_eq!((replaced, w.all()), (0, vec![1, 2, 3]));
    let told = [Order::Disconnect(WorkerId(4)), Order::Disconnect(WorkerId(5))];
    assert_eq!(w.asked, told, "the new ones leave");
    w.exit(4, 0);
    w.exit(5, 0);

    // One that ends after it was ready, while the others are waited for.
    let reload = w.reload_as(all_or_none());
    w.up(7);
    w.exit(7, 9);
    let (_, reason) = failed(&w, reload);
    assert!(matches!(reason, Some(ReplaceFailure::Ended { was_ready: true, .. })));
    w.exit(8, 0);
    w.exit(9, 0);

    // One that is late.
    let reload = w.reload_as(all_or_none());
    w.up(10);
    w.pass(6 * SECOND);
    let (_, reason) = failed(&w, reload);
    let late =
        ReplaceFailure::NotReady { worker: Some(WorkerId(11)), within: 5 * SECOND, seen: None };
    assert_eq!(reason, Some(&late));
    for worker in 10..=12 {
        w.exit(worker, 0);
    }

    w.asked.clear();
    let reload = w.reload_as(all_or_none());
    for worker in 13..=15 {
        w.up(worker);
    }
    assert_eq!(w.all(), [13, 14, 15]);
    assert!(matches!(w.answer(reload), Some(Answer::Reload(Ok(Reloaded { replaced: 3, .. })))));
}

#[test]
fn a_reload_with_a_limit_starts_no_more_while_old_ones_finish() {
    let mut w = Simulation::embedded(policy());
    for worker in 1..=2 {
        w.fork();
        w.up(worker);
    }
    let reload = w.reload_as(at_once().max_surge(1));
    w.up(3);
    assert_eq!((w.all(), w.forks), (vec![3, 2], 1), "the first old one has not ended");
    w.exit(1, 0);
    assert_eq!(w.forks, 2);
    w.up(4);
    assert_eq!(w.all(), [3, 4]);
    assert!(matches!(w.answer(reload), Some(Answer::Reload(Ok(_)))));
}

#[test]
fn a_reload_fills_a_slot_that_waits_for_its_next_worker() {
    let mut w = Simulation::embedded(policy().first_delay(60 * SECOND).max_delay(60 * SECOND));
    for worker in 1..=2 {
        w.fork();
        w.up(worker);
    }
    w.exit(1, 1);
    let reload = w.reload_as(at_once().all_or_none(true));
    w.up(3);
    w.up(4);
    assert_eq!(w.all(), [3, 4]);
    let done = Reloaded { replaced: 1, started: 1, ..Reloaded::default() };
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Ok(done))));
}

#[test]
fn when_all_are_told_to_leave_a_reload_is_over_and_nobody_comes() {
    let mut w = Simulation::embedded(policy());
    for worker in 1..=2 {
        w.fork();
        w.up(worker);
    }
    let reload = w.reload_as(at_once().max_surge(1));
    w.supervisor.release_all(w.now);
    w.carry_out();
    assert_eq!(w.answer(reload), Some(&Answer::Reload(Err(ReloadFailed::Stopped))));
    assert_eq!(w.asked, [Order::Disconnect(WorkerId(3))], "the program tells its own");
    for worker in 1..=3 {
        w.exit(worker, 0);
    }
    w.pass(60 * SECOND);
    assert_eq!((w.all(), w.forks), (vec![], 1));
    assert!(!w.supervisor.expects_workers());
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever happens in whatever order: no worker is told to leave but in a reload, no
        /// deadline stays, every reload is answered, and what is empty is about to be filled.
        #[test]
        fn a_program_can_do_what_it_likes(
            steps in proptest::collection::vec((0u8..13, 0u32..8, 0u64..4000), 0..80),
        ) {
            let mut w = Simulation::embedded(policy());
            let mut tickets = vec![];
            for (what, which, wait) in steps {
                let recent = w.next_worker.saturating_sub(which).max(1);
                match what {
                    0 | 1 if w.supervisor.wanted() < 5 => drop(w.fork()),
                    2 => w.exit(recent, 1),
                    3..=5 => w.up(recent),
                    6 => w.disconnect(recent),
                    7 => w.supervisor.release(w.now, WorkerId(recent)),
                    8 if wait > 3500 => w.supervisor.release_all(w.now),
                    9 => {
                        let policy = at_once().all_or_none(which % 2 == 0).max_surge(which as usize);
                        tickets.push(w.reload_as(policy.ready_timeout(Duration::from_millis(wait))));
                    }
                    10 if wait > 3500 => w.supervisor.restart_as(policy().restart(Restart::Never), false),
                    11 => w.supervisor.restart_as(policy(), which % 2 == 0),
                    _ => {}
                }
                w.carry_out();
                if tickets.is_empty() {
                    prop_assert_eq!(&w.asked, &vec![]);
                }
                w.pass(Duration::from_millis(wait));
                let sup = &w.supervisor;
                let in_use = sup.slots.iter().enumerate().filter(|(_, state)| !state.is_retired);
                let mut count = 0;
                for (slot, state) in in_use {
                    count += 1;
                    prop_assert!(state.current.is_none_or(|member| !w.held.contains(&member.worker)));
                    let is_awaited = sup.round.as_ref().is_some_and(|round| round.is_at(slot));
                    prop_assert!(state.current.is_some() || state.retry_at.is_some() || is_awaited, "slot {slot} is forgotten");
                }
                prop_assert_eq!(count, sup.wanted());
            }
            // Those that were killed, or are to leave, do.
            while let Some(leaving) = w.supervisor.leaving.first() {
                w.exit(leaving.worker.0, 0);
            }
            w.pass(30 * SECOND);
            for ticket in tickets {
                prop_assert!(w.answer(ticket).is_some(), "{ticket:?} is not answered: {:?}", w.supervisor);
            }
            prop_assert_eq!(w.outcome, None);
        }
    }
}
