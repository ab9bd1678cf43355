use super::*;

struct World {
    supervisor: Supervisor,
    now: Time,
    next_worker: u32,
    forks: usize,
    told: Vec<Progress>,
    asked: Vec<Order>,
    outcome: Option<Outcome>,
}

impl World {
    fn new(workers: usize) -> World {
        let mut supervisor = Supervisor::new(Config::new(workers));
        supervisor.start();
        let mut world = World { supervisor, now: Time(0), next_worker: 0, forks: 0, told: vec![], asked: vec![], outcome: None };
        world.carry_out();
        world
    }

    fn carry_out(&mut self) {
        while let Some(order) = self.supervisor.next_order() {
            match order {
                Order::Fork(slot) => {
                    self.next_worker += 1;
                    self.forks += 1;
                    self.supervisor.forked(self.now, slot, WorkerId(self.next_worker));
                }
                Order::Tell(progress) => self.told.push(progress),
                Order::Finish(outcome) => self.outcome = Some(outcome),
                other => self.asked.push(other),
            }
        }
    }

    fn up(&mut self, worker: u32) {
        self.supervisor.online(self.now, WorkerId(worker));
        self.supervisor.listening(self.now, WorkerId(worker));
        self.carry_out();
    }

    fn exit(&mut self, worker: u32, code: i32) {
        self.supervisor.disconnected(self.now, WorkerId(worker));
        self.supervisor.exited(self.now, WorkerId(worker), ExitHow::Code(code));
        self.carry_out();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0;
        while let Some(due) = self.supervisor.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            turns += 1;
            assert!(turns < 10_000, "the deadline {due:?} does not go away: {:?}", self.supervisor);
            self.supervisor.tick(self.now);
            self.carry_out();
        }
        self.now = end;
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_worker_that_had_come_up_is_replaced_at_once() {
    let mut w = World::new(2);
    w.up(1);
    w.up(2);
    w.pass(10 * SECOND);
    w.exit(1, 1);
    w.pass(Duration::ZERO);
    assert_eq!(w.forks, 3);
}

#[test]
fn quick_deaths_are_spaced_and_end_in_giving_up() {
    let mut w = World::new(1);
    let mut worker = 1;
    while w.outcome.is_none() {
        w.exit(worker, 7);
        let due = w.supervisor.next_deadline().map_or(Duration::ZERO, |due| due.since(w.now));
        w.pass(due);
        worker = w.next_worker;
    }
    assert_eq!(w.outcome, Some(Outcome::GaveUp(Cause::Ended(WorkerId(8), ExitHow::Code(7)))));
    let delays: Vec<_> =
        w.told.iter().filter_map(|p| if let Progress::Restarting { delay, .. } = p { Some(*delay) } else { None }).collect();
    assert_eq!(delays.len(), 7);
    for (i, delay) in delays.iter().enumerate() {
        let middle = Duration::from_millis(100 << i).min(5 * SECOND);
        assert!(*delay >= middle.mul_f64(0.75) && *delay <= middle.mul_f64(1.25), "{i}: {delay:?}");
    }
}

#[test]
fn slow_crashers_are_caught_too() {
    let mut w = World::new(1);
    for _ in 0..8 {
        w.pass(5 * SECOND);
        let worker = w.next_worker;
        w.exit(worker, 1);
    }
    assert!(matches!(w.outcome, Some(Outcome::GaveUp(_))));
}

#[test]
fn a_reload_replaces_one_by_one_and_only_after_the_successor_listens() {
    let mut w = World::new(2);
    w.up(1);
    w.up(2);
    w.supervisor.reload(w.now);
    w.carry_out();
    assert_eq!((w.forks, w.asked.len()), (3, 0));
    w.up(3);
    assert_eq!((w.forks, w.asked.as_slice()), (4, &[Order::Disconnect(WorkerId(1))][..]));
    w.supervisor.reload(w.now);
    w.carry_out();
    assert_eq!(w.told.last(), Some(&Progress::ReloadRefused));
    w.up(4);
    assert_eq!(w.told.last(), Some(&Progress::ReloadFinished));
    w.exit(1, 0);
    w.exit(2, 0);
    w.pass(60 * SECOND);
    assert_eq!((w.forks, w.outcome), (4, None));
}

#[test]
fn a_reload_that_fails_leaves_the_old_worker_alone() {
    let mut w = World::new(1);
    w.up(1);
    w.supervisor.reload(w.now);
    w.carry_out();
    w.exit(2, 1);
    assert!(matches!(w.told.last(), Some(Progress::ReloadFailed { .. })));
    w.pass(60 * SECOND);
    assert_eq!((w.forks, w.asked.len()), (2, 0));
    w.supervisor.reload(w.now);
    w.carry_out();
    w.pass(60 * SECOND);
    assert!(
        matches!(w.told.iter().rev().find(|p| matches!(p, Progress::ReloadFailed { .. })), Some(Progress::ReloadFailed { reason }) if reason.contains("not ready"))
    );
    assert!(w.asked.contains(&Order::Terminate(WorkerId(3))) && !w.asked.contains(&Order::Disconnect(WorkerId(1))));
}

#[test]
fn stopping_waits_for_the_grace_and_a_second_stop_hurries() {
    let mut w = World::new(2);
    w.up(1);
    w.up(2);
    w.supervisor.stop(w.now);
    w.carry_out();
    w.exit(1, 0);
    w.pass(29 * SECOND);
    assert_eq!(w.asked, [Order::Disconnect(WorkerId(1)), Order::Disconnect(WorkerId(2))]);
    w.supervisor.stop(w.now);
    w.carry_out();
    assert_eq!(w.asked.last(), Some(&Order::Kill(WorkerId(2))));
    w.exit(2, 0);
    assert_eq!(w.outcome, Some(Outcome::Stopped));
    let mut w = World::new(1);
    w.up(1);
    w.supervisor.stop(w.now);
    w.pass(30 * SECOND);
    assert_eq!(w.asked.last(), Some(&Order::Kill(WorkerId(1))));
}

#[test]
fn a_program_that_does_not_exist_is_not_tried_again() {
    let mut supervisor = Supervisor::new(Config::new(3));
    supervisor.start();
    supervisor.fork_failed(Time(0), Slot(0), "no such file".into(), true);
    let orders: Vec<_> = std::iter::from_fn(|| supervisor.next_order()).collect();
    assert_eq!(orders.last(), Some(&Order::Finish(Outcome::GaveUp(Cause::NotStarted("no such file".into())))));
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever happens in whatever order: never more than one worker and one successor per slot, and every stop finishes.
        #[test]
        fn any_sequence_ends_well(steps in proptest::collection::vec((0u8..6, 0u32..8, 0u64..4000), 0..80)) {
            let mut w = World::new(3);
            for (what, which, wait) in steps {
                let recent = w.next_worker.saturating_sub(which).max(1);
                match what {
                    0 => w.exit(recent, 1),
                    1 => w.up(recent),
                    2 => { w.supervisor.reload(w.now); w.carry_out(); }
                    3 => { w.supervisor.disconnected(w.now, WorkerId(recent)); w.carry_out(); }
                    _ => {}
                }
                w.pass(Duration::from_millis(wait));
                let alive = w.supervisor.places.iter().flat_map(|p| p.current.iter().chain(&p.successor)).count();
                prop_assert!(alive <= 4, "{alive} members for 3 slots");
            }
            w.supervisor.stop(w.now);
            w.carry_out();
            for worker in 1..=w.next_worker {
                w.exit(worker, 0);
            }
            prop_assert!(w.outcome.is_some());
        }
    }
}

#[test]
fn workers_come_and_go_when_it_is_scaled() {
    let mut world = World::new(2);
    (1..=2).for_each(|worker| world.up(worker));
    world.supervisor.scale(world.now, 4);
    world.carry_out();
    assert_eq!((world.forks, world.supervisor.wanted()), (4, 4));
    (3..=4).for_each(|worker| world.up(worker));
    world.supervisor.scale(world.now, 1);
    world.carry_out();
    assert_eq!(world.asked, [2, 3, 4].map(|worker| Order::Disconnect(WorkerId(worker))));
    (2..=4).for_each(|worker| world.exit(worker, 0));
    // Nobody comes in their places, but in that of the one that should be there.
    assert_eq!(world.forks, 4);
    world.exit(1, 0);
    world.pass(Duration::from_secs(1));
    assert_eq!((world.forks, world.supervisor.unexpected_ends()), (5, 1));
}

#[test]
fn a_reload_goes_on_with_the_workers_that_are_left() {
    let mut world = World::new(3);
    (1..=3).for_each(|worker| world.up(worker));
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(4);
    world.exit(1, 0);
    // The second one is being replaced now, when it becomes too many, and so does its successor.
    world.supervisor.scale(world.now, 1);
    world.carry_out();
    assert_eq!(world.told.last(), Some(&Progress::ReloadFinished));
    for worker in [2, 3, 5] {
        world.exit(worker, 0);
    }
    assert_eq!(world.forks, 5);
    world.supervisor.stop(world.now);
    world.carry_out();
    world.exit(4, 0);
    assert_eq!(world.outcome, Some(Outcome::Stopped));
}

#[test]
fn a_worker_that_is_not_needed_any_more_is_not_started_or_let_go() {
    let mut world = World::new(1);
    world.up(1);
    for workers in [2, 1, 2, 1] {
        world.supervisor.scale(world.now, workers);
    }
    world.carry_out();
    assert_eq!((world.forks, &world.asked[..]), (1, &[][..]));
    // What was started all the same, or could not be, is nobody's.
    world.supervisor.forked(world.now, Slot(1), WorkerId(7));
    world.supervisor.forked(world.now, Slot(0), WorkerId(8));
    world.supervisor.fork_failed(world.now, Slot(1), "no".into(), true);
    world.carry_out();
    assert_eq!(world.asked, [Order::Terminate(WorkerId(7)), Order::Terminate(WorkerId(8))]);
    assert_eq!(world.outcome, None);
}

#[test]
fn that_no_more_can_be_started_ends_nobody_who_serves() {
    let mut world = World::new(1);
    world.up(1);
    world.supervisor.scale(world.now, 40);
    let slots: Vec<_> = std::iter::from_fn(|| world.supervisor.next_order()).collect();
    for order in slots {
        if let Order::Fork(slot) = order {
            world.supervisor.fork_failed(world.now, slot, "too many processes".into(), slot.0 % 2 == 0);
        }
    }
    world.carry_out();
    assert!(world.asked.is_empty() && world.outcome.is_none());
    // They are tried again, and then they are there.
    world.pass(Duration::from_secs(10));
    assert_eq!(world.forks, 40);
    assert!(world.told.iter().all(|told| matches!(told, Progress::Restarting { .. })));
}
