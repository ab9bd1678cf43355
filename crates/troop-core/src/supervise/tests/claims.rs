//! Addresses that new workers have to take over, and workers that are still to come.

use super::*;
use crate::asked::Asked;
use crate::event::{Address, AddressType};

fn at(port: i64) -> Address {
    Address { address: None, port: Some(port), address_type: AddressType::Tcp4, fd: None }
}

fn claim(port: i64, holders: &[u32]) -> Claim {
    Claim {
        at: at(port),
        named_after: None,
        holders: holders.iter().copied().map(WorkerId).collect(),
        is_shared: true,
    }
}

/// What only one of several workers has.
fn own(port: i64, holders: &[u32]) -> Claim {
    Claim { is_shared: false, ..claim(port, holders) }
}

impl Simulation {
    fn listens(&mut self, worker: u32, ports: &[i64]) {
        self.supervisor.online(self.now, WorkerId(worker), true);
        let asked = ports.iter().map(|port| Asked::by_several(at(*port)));
        self.supervisor.listens_at(WorkerId(worker), asked.collect());
        self.supervisor.listening(self.now, WorkerId(worker));
        self.carry_out();
    }

    fn reload_with(&mut self, claims: &[Claim]) {
        self.supervisor.reload_with(self.now, claims.to_vec());
        self.carry_out();
    }

    fn failure(&self) -> Option<&str> {
        self.progress.iter().rev().find_map(|progress| match progress {
            Progress::ReloadFailed { reason, .. } | Progress::RecycleFailed { reason, .. } => {
                Some(reason.as_str())
            }
            _ => None,
        })
    }
}

fn serving(workers: usize) -> Simulation {
    let mut simulation = Simulation::with(Config::new(workers));
    (1..=workers as u32).for_each(|worker| simulation.listens(worker, &[80]));
    simulation.pass(10 * SECOND);
    simulation
}

#[test]
fn a_reload_whose_first_worker_listens_elsewhere_replaces_nobody_and_names_the_address() {
    let mut simulation = serving(3);
    simulation.reload_with(&[claim(80, &[1, 2, 3])]);
    simulation.listens(4, &[81]);
    simulation.pass(2 * SECOND);
    assert!(
        simulation.progress.contains(&Progress::Awaiting { worker: WorkerId(4), at: at(80) }),
        "{:?}",
        simulation.progress
    );
    simulation.pass(27 * SECOND);
    assert_eq!((simulation.failure(), simulation.asked.len()), (None, 0));
    simulation.pass(SECOND);
    let reason = simulation.failure().unwrap();
    assert!(reason.contains("does not listen on *:80,") && reason.contains("on *:81"), "{reason}");
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(4))]);
    assert_eq!(
        simulation
            .progress
            .iter()
            .filter(|progress| matches!(progress, Progress::Awaiting { .. }))
            .count(),
        1
    );
}

#[test]
fn a_worker_that_listens_late_has_as_long_as_for_being_ready() {
    let mut simulation = serving(2);
    simulation.reload_with(&[claim(80, &[1, 2])]);
    simulation.listens(3, &[9]);
    simulation.pass(25 * SECOND);
    assert!(simulation.asked.is_empty());
    simulation.listens(3, &[9, 80]);
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(1))]);
    // One worker that has it is enough: the next one may do something else.
    simulation.listens(4, &[9]);
    assert_eq!(simulation.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn what_the_predecessor_did_not_have_is_not_asked_of_its_successor() {
    let mut simulation = serving(2);
    simulation.reload_with(&[claim(80, &[1, 2]), claim(90, &[2])]);
    simulation.listens(3, &[80]);
    simulation.pass(2 * SECOND);
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(1))]);
    simulation.listens(4, &[80]);
    assert_eq!(simulation.asked.len(), 1, "worker 2 has it, and nobody new");
    simulation.listens(4, &[80, 90]);
    assert_eq!(simulation.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn where_the_old_one_leaves_first_the_new_one_has_to_take_over_all_the_same() {
    let mut simulation = Simulation::with(changed(Config::new(2), |config| {
        config.replace.max_surge = 0;
        config.replace.max_unavailable = 1;
        config.replace.min_ready_time = Duration::ZERO;
    }));
    (1..=2).for_each(|worker| simulation.listens(worker, &[80]));
    simulation.reload_with(&[claim(80, &[1, 2])]);
    simulation.exit(1, 0);
    simulation.listens(3, &[81]);
    simulation.pass(30 * SECOND);
    assert!(simulation.failure().is_some_and(|reason| reason.contains("*:80")));
    assert!(!simulation.asked.contains(&Order::Disconnect(WorkerId(2))));
}

#[test]
fn what_was_left_open_is_asked_of_the_first_new_worker_and_a_failure_leaves_it_open() {
    let mut simulation = serving(2);
    simulation.supervisor.pause(simulation.now);
    simulation.carry_out();
    (1..=2).for_each(|worker| simulation.exit(worker, 0));
    assert!(simulation.supervisor.expects_workers());
    simulation.reload_with(&[claim(80, &[])]);
    simulation.listens(3, &[81]);
    simulation.pass(60 * SECOND);
    assert!(simulation.failure().is_some_and(|reason| reason.contains("*:80")));
    assert!(simulation.supervisor.expects_workers());
    simulation.exit(3, 0);
    // Without claims it may listen where it likes.
    simulation.reload_with(&[]);
    let newest = simulation.next_worker;
    simulation.listens(newest, &[81]);
    simulation.pass(2 * SECOND);
    simulation.listens(newest + 1, &[81]);
    assert_eq!(simulation.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn a_worker_whose_successor_listens_elsewhere_is_not_recycled() {
    let mut simulation = serving(2);
    assert!(simulation.supervisor.recycle_with(
        simulation.now,
        WorkerId(1),
        "it is old".into(),
        vec![claim(80, &[1, 2])]
    ));
    simulation.carry_out();
    simulation.listens(3, &[81]);
    simulation.pass(31 * SECOND);
    assert!(simulation.failure().is_some_and(|reason| reason.contains("*:80")));
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(3))]);
}

#[test]
fn workers_are_expected_as_long_as_a_slot_is_not_filled() {
    let mut simulation = serving(2);
    let expects = |simulation: &Simulation| simulation.supervisor.expects_workers();
    assert!(!expects(&simulation));
    // Its channel is closed: it is about to end.
    simulation.supervisor.disconnected(simulation.now, WorkerId(1));
    assert!(expects(&simulation));
    simulation.exit(1, 1);
    simulation.pass(SECOND / 2);
    assert!(
        !expects(&simulation),
        "the successor is there, and what it asks for is seen by others"
    );
    simulation.exit(3, 1);
    assert!(expects(&simulation));
    simulation.pass(SECOND);
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    assert!(expects(&simulation));
    simulation.listens(simulation.next_worker, &[80]);
    simulation.pass(2 * SECOND);
    simulation.listens(simulation.next_worker, &[80]);
    assert!(!expects(&simulation));
    simulation.supervisor.scale(simulation.now, 1);
    assert!(!expects(&simulation));
    simulation.supervisor.scale(simulation.now, 0);
    assert!(expects(&simulation));
    simulation.carry_out();
    simulation.supervisor.scale(simulation.now, 2);
    simulation.carry_out();
    simulation.supervisor.stop(simulation.now);
    assert!(!expects(&simulation));
}

/// As programs that probe their port do, and move when they find it open.
#[test]
fn what_only_one_worker_has_is_lost_by_no_reload() {
    let mut simulation = serving(3);
    simulation.reload_with(&[claim(80, &[1, 2, 3]), own(90, &[1])]);
    // It comes last.
    simulation.listens(4, &[80, 7]);
    simulation.pass(2 * SECOND);
    simulation.listens(5, &[80, 8]);
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(2)), Order::Disconnect(WorkerId(3))]);
    simulation.listens(6, &[80, 9]);
    simulation.pass(29 * SECOND);
    assert!(
        simulation.progress.contains(&Progress::Awaiting { worker: WorkerId(6), at: at(90) }),
        "{:?}",
        simulation.progress
    );
    assert_eq!(simulation.failure(), None);
    // Those that leave have not ended, and get the stop signal.
    assert_eq!(
        simulation.asked[2..],
        [Order::Terminate(WorkerId(2)), Order::Terminate(WorkerId(3))]
    );
    simulation.pass(SECOND);
    let reason = simulation.failure().unwrap();
    assert!(
        reason.contains("no new worker listens on *:90, where worker 1 did")
            && reason.contains("*:9;"),
        "{reason}"
    );
    assert!(
        !simulation.asked.contains(&Order::Disconnect(WorkerId(1)))
            && !simulation.progress.contains(&Progress::ReloadFinished)
    );
    assert_eq!(simulation.of(0), 1);
}

#[test]
fn what_only_one_worker_has_may_go_to_its_successor_or_to_any_other_new_worker() {
    let own_ones = [claim(80, &[1, 2, 3]), own(91, &[1]), own(92, &[2]), own(93, &[3])];
    // Each slot has its own port, and its successor takes it again.
    let mut simulation = serving(3);
    simulation.reload_with(&own_ones);
    for worker in 4..=6 {
        simulation.listens(worker, &[80, 87 + i64::from(worker)]);
        simulation.pass(2 * SECOND);
    }
    assert_eq!(
        simulation.progress.last(),
        Some(&Progress::ReloadFinished),
        "{:?}",
        simulation.progress
    );
    // Another one has them all.
    let mut simulation = serving(3);
    simulation.reload_with(&[own(90, &[1]), own(91, &[1])]);
    simulation.listens(4, &[]);
    simulation.pass(2 * SECOND);
    simulation.listens(5, &[90, 91]);
    simulation.listens(6, &[]);
    assert_eq!(
        simulation.progress.last(),
        Some(&Progress::ReloadFinished),
        "{:?}",
        simulation.progress
    );
}

#[test]
fn a_slot_whose_own_address_another_one_may_bring_is_put_off_until_the_others_are_done() {
    let mut simulation = serving(2);
    simulation.reload_with(&[own(91, &[1]), own(92, &[2])]);
    // Both are the second slot's from now on.
    simulation.listens(3, &[80]);
    simulation.pass(4 * SECOND);
    assert!(
        simulation.progress.contains(&Progress::PutOff { worker: WorkerId(3) }),
        "{:?}",
        simulation.progress
    );
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(3))]);
    simulation.listens(4, &[91, 92]);
    simulation.pass(2 * SECOND);
    assert_eq!(simulation.asked[1..], [Order::Disconnect(WorkerId(2))]);
    simulation.listens(5, &[80]);
    assert_eq!(
        simulation.progress.last(),
        Some(&Progress::ReloadFinished),
        "{:?}",
        simulation.progress
    );
    // While no new worker has them, the worker that has them is not drained.
    let mut simulation = serving(2);
    simulation.reload_with(&[own(91, &[1]), own(92, &[2])]);
    for worker in 3..=4 {
        simulation.listens(worker, &[80]);
        simulation.pass(4 * SECOND);
    }
    simulation.pass(30 * SECOND);
    assert!(
        simulation.failure().is_some_and(|reason| reason.contains("*:92, where worker 2 did")),
        "{:?}",
        simulation.progress
    );
    assert_eq!((simulation.of(0), simulation.of(1)), (1, 2));
}

#[test]
fn what_waited_for_a_successor_when_the_reload_began_is_asked_of_the_new_ones_as_a_whole() {
    let mut simulation = serving(2);
    simulation.exit(2, 1);
    simulation.reload_with(&[claim(80, &[1]), own(90, &[])]);
    for _ in 0..60 {
        (3..=simulation.next_worker).for_each(|worker| simulation.listens(worker, &[80]));
        simulation.pass(SECOND);
    }
    assert!(
        simulation.failure().is_some_and(|reason| reason.contains("*:90")),
        "{:?}",
        simulation.progress
    );
}

#[test]
fn what_a_worker_had_that_is_not_wanted_any_more_is_asked_of_nobody() {
    let mut simulation = serving(2);
    simulation.reload_with(&[claim(80, &[1, 2]), own(90, &[2])]);
    simulation.listens(3, &[80]);
    simulation.pass(SECOND);
    simulation.supervisor.scale(simulation.now, 1);
    simulation.carry_out();
    simulation.pass(2 * SECOND);
    assert_eq!(
        simulation.progress.last(),
        Some(&Progress::ReloadFinished),
        "{:?}",
        simulation.progress
    );
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whichever worker has what, and wherever the new ones listen: a reload that succeeds has
        /// lost no address, and where the old ones leave after the new ones have come, one that
        /// does not has lost none either.
        #[test]
        fn no_reload_loses_an_address(
            old in proptest::collection::vec(proptest::collection::btree_set(1i64..5, 0..3), 1..5),
            new in proptest::collection::vec(proptest::collection::btree_set(1i64..5, 0..4), 12),
            limits in (0usize..3, 0usize..2),
        ) {
            let (max_surge, max_unavailable) = limits;
            let workers = old.len();
            let mut w = Simulation::with(changed(Config::new(workers), |config| {
                config.replace.max_surge = max_surge;
                config.replace.max_unavailable = max_unavailable;
            }));
            for (worker, ports) in (1..).zip(&old) {
                w.listens(worker, &ports.iter().copied().collect::<Vec<_>>());
            }
            w.pass(10 * SECOND);
            let holders = |port: i64| (1..).zip(&old).filter(|(_, ports)| ports.contains(&port)).map(|(id, _)| WorkerId(id)).collect::<Vec<_>>();
            let claims: Vec<_> = (1..5).map(|port| Claim { at: at(port), named_after: None, is_shared: holders(port).len() > 1, holders: holders(port) }).filter(|claim| !claim.holders.is_empty()).collect();
            w.reload_with(&claims);
            let mut ports: std::collections::BTreeMap<WorkerId, Vec<i64>> = Default::default();
            let (mut seen, mut left) = (workers as u32, 0);
            let mut over = false;
            for _ in 0..400 {
                while seen < w.next_worker && !over {
                    seen += 1;
                    let its: Vec<_> = new[seen as usize % new.len()].iter().copied().collect();
                    w.listens(seen, &its);
                    ports.insert(WorkerId(seen), its);
                }
                // A worker that is told to leave ends.
                while let Some(Order::Disconnect(worker) | Order::Terminate(worker)) = w.asked.get(left).cloned() {
                    left += 1;
                    w.exit(worker.0, 0);
                }
                w.pass(SECOND / 2);
                over = w.progress.contains(&Progress::ReloadFinished) || w.failure().is_some();
                if over {
                    break;
                }
            }
            prop_assert!(over, "it goes on for ever: {:?}", w.progress);
            let members: Vec<_> = w.supervisor.slots.iter().filter_map(|state| state.current).map(|member| member.worker).collect();
            let has = |worker: &WorkerId, port| ports.get(worker).map_or_else(
                || old.get(worker.0 as usize - 1).is_some_and(|ports| ports.contains(&port)), |ports| ports.contains(&port));
            for claim in &claims {
                let port = claim.at.port.unwrap();
                if w.failure().is_none() {
                    prop_assert!(members.iter().any(|worker| worker.0 > workers as u32 && has(worker, port)), "{port} is lost: {:?}", w.progress);
                } else if max_unavailable == 0 {
                    prop_assert!(members.iter().any(|worker| has(worker, port)), "{port} is lost: {:?}", w.progress);
                }
            }
        }
    }
}
