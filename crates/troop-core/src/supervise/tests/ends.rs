//! Workers that end by themselves: the back-off of slots, and when an app is given up.

use super::*;

fn down(simulation: &Simulation) -> bool {
    simulation.supervisor.state() == SupervisorState::Degraded
        && simulation.supervisor.is_down(simulation.now)
}

/// Where only workers that listen are ready, however old they are.
fn listeners(workers: usize) -> Config {
    changed(Config::new(workers), |config| {
        config.replace.ready_when = ReadyWhen::Listening;
        config.replace.min_ready_time = Duration::ZERO;
    })
}

/// The delay of the last restart.
fn delay(simulation: &Simulation) -> Duration {
    let delay = |progress: &Progress| {
        if let Progress::Restarting { delay, .. } = progress { Some(*delay) } else { None }
    };
    simulation.progress.iter().rev().find_map(delay).unwrap()
}

#[test]
fn an_app_with_a_ready_worker_is_never_given_up() {
    let mut simulation = Simulation::new(4);
    (1..=4).for_each(|worker| simulation.up(worker));
    for _ in 0..1000 {
        // The first slot's worker serves; all others end as soon as they are ready.
        (1..4).for_each(|slot| simulation.up(simulation.of(slot)));
        (1..4).for_each(|slot| simulation.exit(simulation.of(slot), 1));
        simulation.pass(SECOND);
    }
    assert_eq!(
        (simulation.supervisor.state(), &simulation.outcome, simulation.of(0)),
        (SupervisorState::Degraded, &None, 1)
    );
    assert!(simulation.asked.is_empty(), "{:?}", simulation.asked);
}

#[test]
fn a_slot_whose_worker_keeps_dying_waits_longer_and_the_others_do_not() {
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    for most in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
        simulation.up(simulation.of(1));
        simulation.exit(simulation.of(1), 1);
        let most = Duration::from_millis(most);
        assert!(
            delay(&simulation) >= most.mul_f64(0.75) && delay(&simulation) <= most,
            "{:?} {most:?}",
            delay(&simulation)
        );
        simulation.pass(most);
    }
    simulation.exit(1, 1);
    assert!(
        delay(&simulation) <= Duration::from_millis(20),
        "it had been ready for long: {:?}",
        delay(&simulation)
    );
    // One that stays for the minimum time ends the row.
    simulation.pass(SECOND);
    simulation.up(simulation.of(1));
    simulation.pass(SECOND);
    simulation.exit(simulation.of(1), 1);
    assert!(delay(&simulation) <= Duration::from_millis(20), "{:?}", delay(&simulation));
    simulation.pass(SECOND);
    simulation.exit(simulation.of(1), 1);
    assert!(delay(&simulation) <= Duration::from_millis(120), "{:?}", delay(&simulation));
}

#[test]
fn a_start_without_a_ready_worker_fails_after_so_many_ends() {
    let mut simulation = Simulation::with(changed(listeners(2), |config| {
        config.restart.max_ends = 5;
    }));
    for _ in 0..5 {
        assert_eq!(
            (simulation.supervisor.state(), &simulation.outcome),
            (SupervisorState::Starting, &None)
        );
        simulation.exit(simulation.of(0).max(simulation.of(1)), 3);
        simulation.pass(SECOND / 2);
    }
    let left = simulation.of(0).max(simulation.of(1));
    if left > 0 {
        simulation.exit(left, 0);
    }
    (1..=simulation.next_worker).for_each(|worker| simulation.exit(worker, 0));
    assert!(
        matches!(
            simulation.outcome,
            Some(Outcome::GaveUp(GiveUp::NeverReady {
                ends: 5,
                cause: Cause::Ended(_, ExitHow::Code(3)),
                ..
            }))
        ),
        "{:?}",
        simulation.outcome
    );
    assert!(simulation.progress.iter().any(|progress| matches!(
        progress,
        Progress::GivingUp(GiveUp::NeverReady { ends: 5, .. })
    )));
}

#[test]
fn a_start_whose_workers_are_never_ready_fails_after_the_window() {
    let mut simulation = Simulation::with(changed(listeners(2), |config| {
        config.restart.window = 60 * SECOND;
    }));
    simulation.supervisor.online(simulation.now, WorkerId(1), true);
    simulation.pass(59 * SECOND);
    assert_eq!(
        (simulation.supervisor.state(), simulation.asked.len()),
        (SupervisorState::Starting, 0)
    );
    simulation.pass(SECOND);
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(1)), Order::Terminate(WorkerId(2))]);
    (1..=2).for_each(|worker| simulation.exit(worker, 0));
    assert_eq!(
        simulation.outcome,
        Some(Outcome::GaveUp(GiveUp::NotReady { been_ready: false, within: 60 * SECOND }))
    );
    // One that may take longer is waited for.
    let mut simulation = Simulation::with(changed(listeners(1), |config| {
        config.restart.window = SECOND;
        config.replace.ready_timeout = 300 * SECOND;
    }));
    simulation.pass(299 * SECOND);
    simulation.up(1);
    simulation.pass(1000 * SECOND);
    assert_eq!(simulation.supervisor.state(), SupervisorState::Running);
}

#[test]
fn an_app_that_was_ready_once_is_retried_for_ever_at_the_longest_delay() {
    let mut simulation = Simulation::with(changed(listeners(2), |config| {
        config.restart.max_ends = 2;
    }));
    simulation.up(1);
    (1..=2).for_each(|worker| simulation.exit(worker, 1));
    assert!(down(&simulation));
    for _ in 0..200 {
        simulation.pass(3 * SECOND);
        (0..2).for_each(|slot| simulation.exit(simulation.of(slot), 1));
    }
    assert!(down(&simulation) && simulation.outcome.is_none());
    let forks = simulation.forks;
    simulation.pass(5 * SECOND);
    assert_eq!(simulation.forks, forks + 2);
    assert!(delay(&simulation) >= Duration::from_millis(3750), "{:?}", delay(&simulation));
    (0..2).for_each(|slot| simulation.up(simulation.of(slot)));
    assert_eq!(
        (simulation.supervisor.state(), simulation.progress.last()),
        (SupervisorState::Running, Some(&Progress::Recovered { workers: 2 }))
    );
}

#[test]
fn where_it_is_wanted_an_app_ends_that_had_no_ready_worker_for_the_window() {
    let mut simulation = Simulation::with(changed(Config::new(2), |config| {
        config.restart.when_failed = WhenFailed::End;
        config.restart.window = 20 * SECOND;
    }));
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.pass(100 * SECOND);
    simulation.exit(1, 1);
    simulation.pass(100 * SECOND);
    assert_eq!(simulation.outcome, None, "the second one serves");
    simulation.exit(simulation.of(0), 1);
    simulation.exit(2, 1);
    let begun = simulation.now;
    while simulation.outcome.is_none() {
        (0..2).for_each(|slot| simulation.exit(simulation.of(slot), 1));
        simulation.pass(SECOND / 4);
        if simulation.supervisor.is_stopping() {
            (1..=simulation.next_worker).for_each(|worker| simulation.exit(worker, 0));
        }
    }
    let took = simulation.now.since(begun);
    assert!(took >= 20 * SECOND && took < 21 * SECOND, "{took:?}");
    assert!(simulation.progress.iter().any(|progress| matches!(
        progress,
        Progress::GivingUp(GiveUp::NotReady { been_ready: true, .. })
    )));
}

#[test]
fn the_time_without_workers_that_nobody_wants_does_not_count() {
    let config = changed(listeners(1), |config| {
        config.restart.when_failed = WhenFailed::End;
        config.restart.window = 20 * SECOND;
        config.replace.ready_timeout = 20 * SECOND;
    });
    let mut simulation = Simulation::with(config);
    simulation.up(1);
    simulation.supervisor.scale(simulation.now, 0);
    simulation.carry_out();
    simulation.exit(1, 0);
    simulation.pass(100 * SECOND);
    simulation.supervisor.scale(simulation.now, 1);
    simulation.carry_out();
    assert!(simulation.outcome.is_none() && !simulation.supervisor.is_stopping());
    // From now on one is missing.
    simulation.pass(19 * SECOND);
    assert!(!simulation.supervisor.is_stopping());
    simulation.pass(SECOND);
    assert!(simulation.supervisor.is_stopping(), "{:?}", simulation.progress);
}

#[test]
fn a_start_after_a_restart_is_not_the_first() {
    let mut simulation = Simulation::with(changed(Config::new(1), |config| {
        config.restart.been_ready = true;
        config.restart.max_ends = 2;
    }));
    assert_eq!(simulation.supervisor.state(), SupervisorState::Starting);
    for _ in 0..10 {
        simulation.exit(simulation.of(0), 1);
        assert!(down(&simulation) && simulation.outcome.is_none());
        simulation.pass(5 * SECOND);
    }
}

#[test]
fn slots_that_lose_their_workers_at_once_do_not_get_them_back_at_once() {
    let mut simulation = Simulation::with(listeners(64));
    (1..=64).for_each(|worker| simulation.up(worker));
    simulation.pass(10 * SECOND);
    let most_at_a_time = |simulation: &Simulation, since: Time| {
        let forks = || simulation.forked.iter().map(|(_, at)| *at).filter(|at| *at >= since);
        forks()
            .map(|from| {
                forks()
                    .filter(|at| *at >= from && at.since(from) < Duration::from_millis(100))
                    .count()
            })
            .max()
            .unwrap()
    };
    let fallen = simulation.now;
    (1..=64).for_each(|worker| simulation.exit(worker, 1));
    simulation.pass(2 * SECOND);
    assert_eq!(simulation.forks, 128, "all are back soon");
    assert!(simulation.forked.iter().any(|(_, at)| *at == fallen), "the first one at once");
    assert!(most_at_a_time(&simulation, fallen) < 40, "{}", most_at_a_time(&simulation, fallen));
    // And so it is with those that wait for the longest time.
    for _ in 0..10 {
        (0..64).for_each(|slot| simulation.exit(simulation.of(slot), 1));
        simulation.pass(6 * SECOND);
    }
    let fallen = simulation.now;
    (0..64).for_each(|slot| simulation.exit(simulation.of(slot), 1));
    simulation.pass(6 * SECOND);
    assert!(most_at_a_time(&simulation, fallen) < 20, "{}", most_at_a_time(&simulation, fallen));
}

#[test]
fn a_worker_that_served_is_followed_soon_however_short_it_was_ready() {
    let mut simulation = Simulation::new(1);
    for _ in 0..20 {
        simulation.up(simulation.of(0));
        simulation.supervisor.served(WorkerId(simulation.of(0)));
        simulation.exit(simulation.of(0), 1);
        assert!(delay(&simulation) <= Duration::from_millis(100), "{:?}", delay(&simulation));
        simulation.pass(SECOND / 5);
    }
}

#[test]
fn clients_that_wait_hurry_those_that_can_serve_and_nobody_else() {
    let mut simulation = Simulation::with(listeners(3));
    (1..=3).for_each(|worker| simulation.up(worker));
    for _ in 0..8 {
        // The first slot's workers have been ready; the second one's never are. The third serves.
        simulation.up(simulation.of(0));
        (0..2).for_each(|slot| simulation.exit(simulation.of(slot), 1));
        simulation.pass(5 * SECOND);
    }
    simulation.up(simulation.of(0));
    (0..2).for_each(|slot| simulation.exit(simulation.of(slot), 1));
    assert!(!simulation.supervisor.may_hurry(), "one is ready");
    simulation.exit(simulation.of(2), 1);
    let forks = simulation.forks;
    simulation.pass(Duration::from_millis(200));
    assert_eq!(
        (simulation.forks, simulation.supervisor.may_hurry()),
        (forks + 1, true),
        "the third slot's had been ready for long"
    );
    simulation.supervisor.hurry(simulation.now);
    simulation.carry_out();
    simulation.pass(Duration::from_millis(1));
    let slots: Vec<_> = simulation.forked[forks..].iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, [2, 0]);
    assert!(!simulation.supervisor.may_hurry());
}

#[test]
fn a_reload_does_not_wait_for_a_slot_that_waits() {
    let mut simulation = Simulation::with(listeners(1));
    simulation.up(1);
    for _ in 0..8 {
        simulation.exit(simulation.of(0), 1);
        simulation.pass(5 * SECOND);
    }
    simulation.exit(simulation.of(0), 1);
    let forks = simulation.forks;
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    assert_eq!(simulation.forks, forks + 1);
    simulation.up(simulation.of(0));
    assert_eq!(simulation.supervisor.state(), SupervisorState::Running);
    // Nor does one that has taken over owe anything of its predecessors'.
    simulation.exit(simulation.of(0), 1);
    assert!(delay(&simulation) <= Duration::from_millis(100), "{:?}", delay(&simulation));
}

#[test]
fn a_reload_that_fails_after_a_pause_leaves_the_pause_unless_somebody_serves() {
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.supervisor.pause(simulation.now);
    simulation.carry_out();
    (1..=2).for_each(|worker| simulation.exit(worker, 0));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.exit(3, 1);
    assert_eq!(simulation.supervisor.state(), SupervisorState::Paused);
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(4);
    simulation.exit(5, 1);
    assert_eq!(
        (simulation.supervisor.state(), simulation.of(0)),
        (SupervisorState::Degraded, 4),
        "{:?}",
        simulation.progress
    );
    simulation.pass(SECOND);
    assert_eq!(simulation.of(1), 6);
    assert!(!simulation.asked.contains(&Order::Disconnect(WorkerId(4))));
}

#[test]
fn slots_whose_workers_have_finished_are_not_missed() {
    let mut simulation = Simulation::with(changed(Config::new(3), |config| {
        config.restart.restart = Restart::OnFailure;
        config.restart.final_codes = vec![3];
    }));
    (1..=3).for_each(|worker| simulation.up(worker));
    simulation.exit(1, 0);
    simulation.exit(2, 3);
    assert_eq!(simulation.supervisor.state(), SupervisorState::Running);
    let done: Vec<_> =
        simulation.supervisor.vacancies().map(|vacancy| (vacancy.slot.0, vacancy.done)).collect();
    assert_eq!(done, [(0, Some(ExitHow::Code(0))), (1, Some(ExitHow::Code(3)))]);
    // One that failed for good is.
    let mut simulation = Simulation::with(changed(Config::new(2), |config| {
        config.restart.restart = Restart::Never;
    }));
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.exit(1, 1);
    assert_eq!(
        (simulation.supervisor.state(), &simulation.outcome),
        (SupervisorState::Degraded, &None)
    );
}

#[test]
fn a_program_that_is_gone_for_a_while_ends_nobody_and_is_tried_again() {
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.pass(SECOND);
    simulation.supervisor.exited(simulation.now, WorkerId(1), ExitHow::Code(1));
    simulation.supervisor.exited(simulation.now, WorkerId(2), ExitHow::Code(1));
    for _ in 0..100 {
        for order in std::iter::from_fn(|| simulation.supervisor.next_order()).collect::<Vec<_>>() {
            match order {
                Order::Fork(slot) => simulation.supervisor.fork_failed(
                    simulation.now,
                    slot,
                    "no such file".into(),
                    true,
                ),
                Order::Report(Progress::Restarting { .. } | Progress::Degraded { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        simulation.now = simulation.now.max(simulation.supervisor.next_deadline().unwrap());
        simulation.supervisor.tick(simulation.now);
    }
    simulation.pass(6 * SECOND);
    assert_eq!(
        simulation.supervisor.slots.iter().filter(|state| state.current.is_some()).count(),
        2
    );
}

#[test]
fn a_worker_that_has_closed_its_channel_is_not_ready_any_more() {
    let mut simulation = Simulation::new(1);
    simulation.up(1);
    simulation.pass(10 * SECOND);
    simulation.disconnect(1);
    simulation.carry_out();
    assert!(down(&simulation) || simulation.supervisor.state() == SupervisorState::Starting);
    assert_eq!(simulation.supervisor.standing(simulation.now, WorkerId(1)), Some((false, 1)));
    simulation.exit(1, 1);
    assert!(down(&simulation) && delay(&simulation).is_zero());
}

#[test]
fn a_worker_that_is_never_ready_is_replaced_as_one_that_failed() {
    let mut simulation = Simulation::with(changed(listeners(2), |config| {
        config.replace.ready_timeout = 20 * SECOND;
    }));
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.pass(10 * SECOND);
    simulation.exit(1, 1);
    simulation.pass(SECOND);
    let stuck = simulation.of(0);
    simulation.supervisor.online(simulation.now, WorkerId(stuck), true);
    simulation.pass(18 * SECOND);
    assert!(simulation.asked.is_empty(), "it may be ready yet: {:?}", simulation.asked);
    simulation.pass(2 * SECOND);
    assert!(
        simulation
            .progress
            .contains(&Progress::NotReady { worker: WorkerId(stuck), within: 20 * SECOND }),
        "{:?}",
        simulation.progress
    );
    assert_eq!(simulation.asked, [Order::Disconnect(WorkerId(stuck))]);
    // It does not respond, and its slot is not refilled before it has ended.
    simulation.pass(30 * SECOND);
    assert_eq!(
        simulation.asked[1..],
        [
            Order::Terminate(WorkerId(stuck)),
            Order::Insist(WorkerId(stuck)),
            Order::Kill(WorkerId(stuck))
        ]
    );
    assert!(simulation.supervisor.expects_workers());
    simulation.exit(stuck, 1);
    assert!(delay(&simulation) >= Duration::from_millis(75), "{:?}", delay(&simulation));
    simulation.pass(SECOND);
    simulation.up(simulation.of(0));
    assert_eq!(
        (simulation.supervisor.state(), simulation.progress.last()),
        (SupervisorState::Running, Some(&Progress::Recovered { workers: 2 }))
    );
}

#[test]
fn a_program_that_does_not_listen_is_not_late_and_workers_of_a_slow_start_are_not_either() {
    // Neither one that speaks, nor one that does not.
    let mut simulation = Simulation::new(2);
    simulation.supervisor.online(simulation.now, WorkerId(1), true);
    simulation.pass(1000 * SECOND);
    assert_eq!((simulation.forks, simulation.supervisor.state()), (2, SupervisorState::Running));
    // The second one takes longer than a new worker of a reload may, but no longer than a start
    // may.
    let mut simulation = Simulation::with(changed(listeners(2), |config| {
        config.replace.ready_timeout = 5 * SECOND;
        config.restart.window = 60 * SECOND;
    }));
    simulation.pass(50 * SECOND);
    simulation.up(1);
    simulation.pass(9 * SECOND);
    assert!(simulation.asked.is_empty());
    simulation.up(2);
    simulation.pass(100 * SECOND);
    assert!(simulation.asked.is_empty() && simulation.forks == 2);
    // Nor does it wait for ever.
    let mut simulation = Simulation::with(changed(listeners(2), |config| {
        config.replace.ready_timeout = 5 * SECOND;
        config.restart.window = 60 * SECOND;
    }));
    simulation.up(1);
    simulation.pass(60 * SECOND);
    assert_eq!(simulation.asked, [Order::Terminate(WorkerId(2))]);
}

#[test]
fn a_worker_that_comes_back_where_none_was_is_told_as_an_improvement() {
    let mut simulation = Simulation::with(listeners(2));
    (1..=2).for_each(|worker| simulation.up(worker));
    (1..=2).for_each(|worker| simulation.exit(worker, 1));
    simulation.pass(SECOND);
    simulation.up(simulation.of(0));
    assert_eq!(simulation.progress.last(), Some(&Progress::Recovering { ready: 1, wanted: 2 }));
    simulation.up(simulation.of(1));
    assert_eq!(simulation.progress.last(), Some(&Progress::Recovered { workers: 2 }));
}

#[test]
fn an_end_that_no_restart_follows_is_no_restart() {
    let mut simulation = Simulation::with(changed(Config::new(2), |config| {
        config.restart.restart = Restart::Never;
    }));
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.exit(1, 1);
    assert_eq!(simulation.supervisor.unexpected_ends(), 0);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever happens to workers, a slot gets its next one no sooner than its back-off
        /// allows, and no later.
        #[test]
        fn no_slot_is_filled_sooner_or_later_than_its_back_off_says(
            slots in 1usize..6,
            steps in proptest::collection::vec((0usize..6, 0u8..4, 0u64..3000), 0..60),
        ) {
            let config = changed(listeners(slots), |config| {
                config.restart.max_ends = usize::MAX;
                config.restart.window = SECOND * 100_000;
            });
            let mut w = Simulation::with(config);
            // By slot: when its worker ended, quick ends in a row, whether it may be hurried; and
            // since when its worker is ready.
            let mut ended: Vec<Option<(Time, bool)>> = vec![None; slots];
            let (mut row, mut ready, mut seen) = (vec![0u32; slots], vec![None; slots], slots);
            for (slot, what, wait) in steps {
                let slot = slot % slots;
                match (what, w.of(slot)) {
                    (0 | 1, worker @ 1..) => {
                        w.up(worker);
                        ready[slot].get_or_insert(w.now);
                    }
                    (2, worker @ 1..) => {
                        let life = ready[slot].take().map(|at: Time| w.now.since(at));
                        row[slot] = if life >= Some(SECOND) { 0 } else { row[slot] + 1 };
                        ended[slot] = Some((w.now, life.is_some()));
                        w.exit(worker, 1);
                    }
                    (3, _) => {
                        w.supervisor.hurry(w.now);
                        w.carry_out();
                    }
                    _ => {}
                }
                w.pass(Duration::from_millis(wait));
                let nominal = |row: u32| match row {
                    0 => Duration::ZERO,
                    row => Duration::from_millis(100 << (row - 1).min(8)).min(5 * SECOND),
                };
                for (slot, at) in w.forked.drain(..).skip(seen) {
                    let (end, may_hurry) = ended[slot].take().expect("its slot was empty");
                    let least = if may_hurry { nominal(row[slot].min(1)) } else { nominal(row[slot]) };
                    prop_assert!(at.since(end) >= least.mul_f64(0.74), "{:?} after end {} in a row", at.since(end), row[slot]);
                }
                seen = 0;
                for (slot, end) in ended.iter().enumerate().filter_map(|(slot, end)| Some((slot, (*end)?))) {
                    let most = nominal(row[slot]) + Duration::from_millis(20) * 5;
                    prop_assert!(w.now.since(end.0) <= most, "slot {slot} is empty for {:?}", w.now.since(end.0));
                }
                prop_assert!(w.outcome.is_none());
            }
        }
    }
}
