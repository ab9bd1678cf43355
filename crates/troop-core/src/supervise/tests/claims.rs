//! Addresses that new workers have to take over, and workers that are still to come.

use super::*;
use crate::event::AddressType;

fn at(port: i64) -> Address {
    Address { address: None, port: Some(port), address_type: AddressType::Tcp4, fd: None }
}

fn claim(port: i64, holders: &[u32]) -> Claim {
    Claim { at: at(port), holders: holders.iter().copied().map(WorkerId).collect() }
}

impl World {
    fn listens(&mut self, worker: u32, ports: &[i64]) {
        self.supervisor.online(self.now, WorkerId(worker), true);
        self.supervisor.listens_at(WorkerId(worker), ports.iter().copied().map(at).collect());
        self.supervisor.listening(self.now, WorkerId(worker));
        self.carry_out();
    }

    fn reload_with(&mut self, claims: &[Claim]) {
        self.supervisor.reload_with(self.now, claims.to_vec());
        self.carry_out();
    }

    fn failure(&self) -> Option<&str> {
        self.told.iter().rev().find_map(|told| match told {
            Progress::ReloadFailed { reason } | Progress::RecycleFailed { reason, .. } => Some(reason.as_str()),
            _ => None,
        })
    }
}

fn serving(workers: usize) -> World {
    let mut world = World::with(Config::new(workers));
    (1..=workers as u32).for_each(|worker| world.listens(worker, &[80]));
    world.pass(10 * SECOND);
    world
}

#[test]
fn a_reload_whose_first_worker_listens_elsewhere_replaces_nobody_and_names_the_address() {
    let mut world = serving(3);
    world.reload_with(&[claim(80, &[1, 2, 3])]);
    world.listens(4, &[81]);
    world.pass(2 * SECOND);
    assert!(world.told.contains(&Progress::Awaiting { worker: WorkerId(4), at: at(80) }), "{:?}", world.told);
    world.pass(27 * SECOND);
    assert_eq!((world.failure(), world.asked.len()), (None, 0));
    world.pass(SECOND);
    let reason = world.failure().unwrap();
    assert!(reason.contains("does not listen on *:80,") && reason.contains("on *:81"), "{reason}");
    assert_eq!(world.asked, [Order::Disconnect(WorkerId(4))]);
    assert_eq!(world.told.iter().filter(|told| matches!(told, Progress::Awaiting { .. })).count(), 1);
}

#[test]
fn a_worker_that_listens_late_has_as_long_as_for_being_ready() {
    let mut world = serving(2);
    world.reload_with(&[claim(80, &[1, 2])]);
    world.listens(3, &[9]);
    world.pass(25 * SECOND);
    assert!(world.asked.is_empty());
    world.listens(3, &[9, 80]);
    assert_eq!(world.asked, [Order::Disconnect(WorkerId(1))]);
    // One that has it will do: who is next may be a worker that does something else.
    world.listens(4, &[9]);
    assert_eq!(world.told.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn what_the_predecessor_did_not_have_is_not_asked_of_its_successor() {
    let mut world = serving(2);
    world.reload_with(&[claim(80, &[1, 2]), claim(90, &[2])]);
    world.listens(3, &[80]);
    world.pass(2 * SECOND);
    assert_eq!(world.asked, [Order::Disconnect(WorkerId(1))]);
    world.listens(4, &[80]);
    assert_eq!(world.asked.len(), 1, "worker 2 has it, and nobody new");
    world.listens(4, &[80, 90]);
    assert_eq!(world.told.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn where_the_old_one_leaves_first_the_new_one_has_to_take_over_all_the_same() {
    let mut world = World::with(Config { surge: 0, unavailable: 1, settle: Duration::ZERO, ..Config::new(2) });
    (1..=2).for_each(|worker| world.listens(worker, &[80]));
    world.reload_with(&[claim(80, &[1, 2])]);
    world.exit(1, 0);
    world.listens(3, &[81]);
    world.pass(30 * SECOND);
    assert!(world.failure().is_some_and(|reason| reason.contains("*:80")));
    assert!(!world.asked.contains(&Order::Disconnect(WorkerId(2))));
}

#[test]
fn what_was_left_open_is_asked_of_the_first_new_worker_and_a_failure_leaves_it_open() {
    let mut world = serving(2);
    world.supervisor.pause(world.now);
    world.carry_out();
    (1..=2).for_each(|worker| world.exit(worker, 0));
    assert!(world.supervisor.expects_workers());
    world.reload_with(&[claim(80, &[])]);
    world.listens(3, &[81]);
    world.pass(60 * SECOND);
    assert!(world.failure().is_some_and(|reason| reason.contains("*:80")));
    assert!(world.supervisor.expects_workers());
    world.exit(3, 0);
    // Without claims it may listen where it likes.
    world.reload_with(&[]);
    let newest = world.next_worker;
    world.listens(newest, &[81]);
    world.pass(2 * SECOND);
    world.listens(newest + 1, &[81]);
    assert_eq!(world.told.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn a_worker_whose_successor_listens_elsewhere_is_not_recycled() {
    let mut world = serving(2);
    assert!(world.supervisor.recycle_with(world.now, WorkerId(1), "it is old".into(), vec![claim(80, &[1, 2])]));
    world.carry_out();
    world.listens(3, &[81]);
    world.pass(31 * SECOND);
    assert!(world.failure().is_some_and(|reason| reason.contains("*:80")));
    assert_eq!(world.asked, [Order::Disconnect(WorkerId(3))]);
}

#[test]
fn workers_are_expected_as_long_as_a_slot_is_not_filled() {
    let mut world = serving(2);
    let expects = |world: &World| world.supervisor.expects_workers();
    assert!(!expects(&world));
    // Its channel is closed: it is about to end.
    world.supervisor.disconnected(world.now, WorkerId(1));
    assert!(expects(&world));
    world.exit(1, 1);
    world.pass(SECOND / 2);
    assert!(!expects(&world), "the successor is there, and what it asks for is seen by others");
    world.exit(3, 1);
    assert!(expects(&world));
    world.pass(SECOND);
    world.supervisor.reload(world.now);
    world.carry_out();
    assert!(expects(&world));
    world.listens(world.next_worker, &[80]);
    world.pass(2 * SECOND);
    world.listens(world.next_worker, &[80]);
    assert!(!expects(&world));
    world.supervisor.scale(world.now, 1);
    assert!(!expects(&world));
    world.supervisor.scale(world.now, 0);
    assert!(expects(&world));
    world.carry_out();
    world.supervisor.scale(world.now, 2);
    world.carry_out();
    world.supervisor.stop(world.now);
    assert!(!expects(&world));
}
