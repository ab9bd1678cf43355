//! Reloads, recycling, and when a worker is ready to take another one's place.

use super::*;

#[test]
fn a_reload_replaces_one_by_one_and_only_after_the_successor_listens() {
    let mut w = Simulation::new(2);
    w.up(1);
    w.up(2);
    w.supervisor.reload(w.now);
    w.carry_out();
    assert_eq!((w.forks, w.asked.len()), (3, 0));
    w.up(3);
    assert_eq!((w.forks, w.asked.as_slice()), (4, &[Order::Disconnect(WorkerId(1))][..]));
    w.supervisor.reload(w.now);
    w.carry_out();
    assert_eq!(w.progress.last(), Some(&Progress::ReloadRefused));
    w.up(4);
    assert_eq!(w.progress.last(), Some(&Progress::ReloadFinished));
    w.exit(1, 0);
    w.exit(2, 0);
    w.pass(60 * SECOND);
    assert_eq!((w.forks, w.outcome), (4, None));
}

#[test]
fn a_reload_that_fails_leaves_the_old_worker_alone() {
    let mut w = Simulation::new(1);
    w.up(1);
    w.supervisor.reload(w.now);
    w.carry_out();
    w.exit(2, 1);
    assert!(matches!(w.progress.last(), Some(Progress::ReloadFailed { .. })));
    w.pass(60 * SECOND);
    assert_eq!((w.forks, w.asked.len()), (2, 0));
    w.supervisor.reload(w.now);
    w.carry_out();
    w.pass(60 * SECOND);
    assert!(
        matches!(w.progress.iter().rev().find(|p| matches!(p, Progress::ReloadFailed { .. })), Some(Progress::ReloadFailed { reason, .. }) if reason.contains("not ready"))
    );
    assert!(
        w.asked.contains(&Order::Terminate(WorkerId(3)))
            && !w.asked.contains(&Order::Disconnect(WorkerId(1)))
    );
}

#[test]
fn a_reload_goes_on_with_the_workers_that_are_left() {
    let mut simulation = Simulation::new(3);
    (1..=3).for_each(|worker| simulation.up(worker));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(4);
    simulation.exit(1, 0);
    // The second one is being replaced now, when it becomes too many, and so does its successor.
    simulation.supervisor.scale(simulation.now, 1);
    simulation.carry_out();
    assert_eq!(simulation.progress.last(), Some(&Progress::ReloadFinished));
    for worker in [2, 3, 5] {
        simulation.exit(worker, 0);
    }
    assert_eq!(simulation.forks, 5);
    simulation.supervisor.stop(simulation.now);
    simulation.carry_out();
    simulation.exit(4, 0);
    assert_eq!(simulation.outcome, Some(Outcome::Stopped { killed: vec![] }));
}

#[test]
fn a_fork_that_takes_longer_than_the_ready_timeout_keeps_nobody_awake() {
    for all_or_none in [false, true] {
        let mut simulation = Simulation::with(changed(Config::new(2), |config| {
            config.replace.min_ready_time = Duration::ZERO;
            config.replace.ready_timeout = SECOND;
            config.replace.all_or_none = all_or_none;
        }));
        (1..=2).for_each(|worker| simulation.up(worker));
        simulation.supervisor.reload(simulation.now);
        let orders = std::iter::from_fn(|| simulation.supervisor.next_order());
        let slots: Vec<_> = orders
            .filter_map(|order| if let Order::Fork(slot) = order { Some(slot) } else { None })
            .collect();
        assert_eq!(slots.len(), if all_or_none { 2 } else { 1 });
        let pass = |simulation: &mut Simulation| {
            simulation.now = simulation.now + 5 * SECOND;
            simulation.supervisor.tick(simulation.now);
            let due = simulation.supervisor.next_deadline();
            assert!(due.is_none_or(|due| due > simulation.now), "{due:?}, {all_or_none}");
        };
        pass(&mut simulation);
        // One has come, and the other has not.
        simulation.supervisor.forked(simulation.now, slots[0], WorkerId(3));
        simulation.up(3);
        pass(&mut simulation);
    }
}

fn replaced(simulation: &Simulation) -> Vec<(u32, u32)> {
    let pair = |progress: &Progress| {
        if let Progress::Replaced { old, new } = progress { Some((old.0, new.0)) } else { None }
    };
    simulation.progress.iter().filter_map(pair).collect()
}

#[test]
fn the_first_new_worker_must_show_that_it_stays() {
    let mut simulation = Simulation::with(Config::new(3));
    (1..=3).for_each(|worker| simulation.up(worker));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(4);
    simulation.pass(Duration::from_millis(1_900));
    assert_eq!((simulation.forks, simulation.asked.len()), (4, 0));
    // It listens, and dies a moment later: no worker was drained for it.
    simulation.exit(4, 1);
    assert!(
        matches!(simulation.progress.last(), Some(Progress::ReloadFailed { .. }))
            && simulation.asked.is_empty()
    );
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(5);
    simulation.pass(2 * SECOND);
    // The others need only be ready.
    simulation.up(6);
    simulation.up(7);
    assert_eq!(
        (replaced(&simulation), simulation.progress.last()),
        (vec![(1, 5), (2, 6), (3, 7)], Some(&Progress::ReloadFinished))
    );
}

#[test]
fn a_new_worker_that_dies_later_in_the_reload_ends_it_too_and_its_kin_are_rolled_back() {
    let mut simulation = Simulation::new(3);
    (1..=3).for_each(|worker| simulation.up(worker));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(4);
    simulation.up(5);
    simulation.exit(5, 7);
    let failed = simulation
        .progress
        .iter()
        .position(|progress| matches!(progress, Progress::ReloadFailed { .. }));
    let restarting = simulation
        .progress
        .iter()
        .position(|progress| matches!(progress, Progress::Restarting { .. }));
    // The other workers can be started as before.
    assert!(failed.is_some() && failed < restarting);
    assert!(
        simulation.asked.contains(&Order::Terminate(WorkerId(6)))
            && !simulation.asked.contains(&Order::Disconnect(WorkerId(3)))
    );
    simulation.supervisor.roll_back(simulation.now);
    simulation.carry_out();
    simulation.pass(SECOND);
    assert!(simulation.progress.contains(&Progress::RollingBack { workers: 1 }));
    simulation.up(7);
    assert_eq!(replaced(&simulation).last(), Some(&(4, 7)));
    assert!(!simulation.progress.contains(&Progress::ReloadFinished));
}

#[test]
fn as_many_start_beside_the_old_ones_as_is_allowed() {
    let mut simulation = Simulation::with(changed(Config::new(5), |config| {
        config.replace.max_surge = 2;
        config.replace.min_ready_time = Duration::ZERO;
    }));
    (1..=5).for_each(|worker| simulation.up(worker));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    // The first one alone, then two at a time.
    assert_eq!(simulation.forks, 6);
    simulation.up(6);
    assert_eq!(simulation.forks, 8);
    simulation.up(8);
    assert_eq!((simulation.forks, replaced(&simulation)), (9, vec![(1, 6), (3, 8)]));
}

#[test]
fn a_worker_that_listens_on_nothing_makes_way_for_its_successor_where_that_is_wanted() {
    let mut w = Simulation::with(changed(Config::new(2), |config| {
        config.replace.make_way_unless_listening = true;
        config.replace.min_ready_time = Duration::ZERO;
    }));
    w.up(1);
    w.supervisor.online(w.now, WorkerId(2), true);
    w.pass(5 * SECOND);
    w.supervisor.reload(w.now);
    w.carry_out();
    // The one that listens has its successor beside it.
    assert_eq!((w.forks, &w.asked[..]), (3, &[][..]));
    w.up(3);
    w.exit(1, 0);
    let told = [Order::Disconnect(WorkerId(1)), Order::Disconnect(WorkerId(2))];
    assert_eq!((w.forks, &w.asked[..]), (3, &told[..]));
    assert!(w.progress.contains(&Progress::MakingWay { worker: WorkerId(2) }), "{:?}", w.progress);
    w.exit(2, 0);
    assert_eq!(w.forks, 4);
    // One alone makes way too.
    w.supervisor.online(w.now, WorkerId(4), true);
    w.pass(5 * SECOND);
    assert!(w.supervisor.recycle(w.now, WorkerId(4), "memory".into()));
    w.carry_out();
    assert_eq!((w.forks, w.asked.last()), (4, Some(&Order::Disconnect(WorkerId(4)))));
}

#[test]
fn where_there_is_no_room_for_more_the_old_one_leaves_first() {
    let mut simulation = Simulation::with(changed(Config::new(2), |config| {
        config.replace.max_surge = 0;
        config.replace.max_unavailable = 1;
        config.replace.min_ready_time = Duration::ZERO;
    }));
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    assert_eq!(
        (simulation.forks, &simulation.asked[..]),
        (2, &[Order::Disconnect(WorkerId(1))][..])
    );
    simulation.exit(1, 0);
    assert_eq!(simulation.forks, 3);
    simulation.up(3);
    assert_eq!(simulation.asked.last(), Some(&Order::Disconnect(WorkerId(2))));
    simulation.exit(2, 0);
    simulation.exit(4, 1);
    assert!(
        simulation
            .progress
            .iter()
            .any(|progress| matches!(progress, Progress::ReloadFailed { .. }))
    );
    // The slot is filled all the same.
    simulation.pass(SECOND);
    assert_eq!(simulation.forks, 5);
}

#[test]
fn one_worker_is_recycled_at_a_time_and_a_reload_goes_before_it() {
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    assert!(simulation.supervisor.recycle(simulation.now, WorkerId(2), "it is old".into()));
    assert!(!simulation.supervisor.recycle(simulation.now, WorkerId(1), "it is old".into()));
    simulation.carry_out();
    simulation.up(3);
    assert_eq!(
        (replaced(&simulation), simulation.supervisor.state()),
        (vec![(2, 3)], SupervisorState::Running)
    );
    assert!(simulation.supervisor.recycle(simulation.now, WorkerId(1), "it is old".into()));
    simulation.carry_out();
    simulation.exit(4, 1);
    assert!(matches!(
        simulation.progress.last(),
        Some(Progress::RecycleFailed { worker: WorkerId(1), .. })
    ));
    assert!(simulation.supervisor.recycle(simulation.now, WorkerId(1), "it is old".into()));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    (5..=7).for_each(|worker| simulation.up(worker));
    assert_eq!(simulation.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn ready_is_who_says_so() {
    let mut simulation = Simulation::with(changed(Config::new(1), |config| {
        config.replace.ready_when = ReadyWhen::Notified;
        config.replace.min_ready_time = Duration::ZERO;
    }));
    simulation.up(1);
    simulation.pass(10 * SECOND);
    assert_eq!(simulation.supervisor.standing(simulation.now, WorkerId(1)), Some((false, 1)));
    simulation.supervisor.reported_ready(simulation.now, WorkerId(1));
    assert_eq!(simulation.supervisor.standing(simulation.now, WorkerId(1)), Some((true, 1)));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(2);
    assert!(replaced(&simulation).is_empty());
    simulation.supervisor.reported_ready(simulation.now, WorkerId(2));
    simulation.carry_out();
    assert_eq!(
        (replaced(&simulation), simulation.supervisor.standing(simulation.now, WorkerId(2))),
        (vec![(1, 2)], Some((true, 2)))
    );
}

#[test]
fn those_that_never_leave_do_not_become_more_and_more() {
    let mut simulation = Simulation::with(changed(Config::new(1), |config| {
        config.grace = Duration::from_secs(86_400);
        config.replace.min_ready_time = Duration::ZERO;
    }));
    simulation.up(1);
    for worker in 2..=20 {
        simulation.supervisor.reload(simulation.now);
        simulation.carry_out();
        simulation.up(worker);
        simulation.pass(2 * SECOND);
    }
    let killed = simulation.asked.iter().filter(|order| matches!(order, Order::Kill(_))).count();
    assert_eq!(
        (killed, simulation.asked.iter().find(|order| matches!(order, Order::Kill(_)))),
        (13, Some(&Order::Kill(WorkerId(1))))
    );
}

#[test]
fn however_fast_reloads_follow_each_other_every_worker_has_a_moment_to_end() {
    let mut simulation = Simulation::with(changed(Config::new(1), |config| {
        config.replace.min_ready_time = Duration::ZERO;
    }));
    simulation.up(1);
    for worker in 2..=30 {
        simulation.supervisor.reload(simulation.now);
        simulation.carry_out();
        simulation.up(worker);
        simulation.pass(Duration::from_millis(50));
    }
    assert!(
        !simulation.asked.iter().any(|order| matches!(order, Order::Kill(_))),
        "{:?}",
        simulation.asked
    );
}

#[test]
fn who_does_not_listen_is_ready_after_a_while_and_sooner_if_it_could_not() {
    let mut simulation = Simulation::new(2);
    simulation.supervisor.online(simulation.now, WorkerId(1), true);
    let standing = |simulation: &Simulation, worker| {
        simulation.supervisor.standing(simulation.now, WorkerId(worker)).map(|(ready, _)| ready)
    };
    simulation.pass(SECOND);
    assert_eq!((standing(&simulation, 1), standing(&simulation, 2)), (Some(false), Some(true)));
    simulation.pass(2 * SECOND);
    assert_eq!(standing(&simulation, 1), Some(true));
}

#[test]
fn a_reload_that_is_cut_short_is_told_to_have_failed() {
    let mut simulation = Simulation::new(1);
    simulation.up(1);
    simulation.supervisor.reload(simulation.now);
    simulation.supervisor.pause(simulation.now);
    simulation.carry_out();
    assert!(
        matches!(simulation.progress.last(), Some(Progress::ReloadFailed { .. })),
        "{:?}",
        simulation.progress
    );
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(simulation.next_worker);
    assert_eq!(simulation.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn settling_begins_when_a_worker_is_ready() {
    let mut simulation = Simulation::with(Config::new(1));
    simulation.up(1);
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    // It takes its time to start, listens, and dies.
    simulation.pass(5 * SECOND);
    simulation.up(2);
    simulation.pass(SECOND);
    simulation.exit(2, 1);
    assert!(
        replaced(&simulation).is_empty()
            && matches!(simulation.progress.last(), Some(Progress::ReloadFailed { .. }))
    );
}

#[test]
fn a_new_version_has_to_show_itself_in_vacant_slots_too() {
    let mut simulation = Simulation::new(1);
    simulation.exit(1, 1);
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    assert_eq!((simulation.forks, simulation.supervisor.state()), (2, SupervisorState::Reloading));
    simulation.exit(2, 1);
    assert!(
        simulation
            .progress
            .iter()
            .any(|progress| matches!(progress, Progress::ReloadFailed { .. }))
    );
    assert!(!simulation.progress.contains(&Progress::ReloadFinished));
}

#[test]
fn who_closes_its_channel_takes_nobodys_place() {
    let mut simulation = Simulation::with(Config::new(1));
    simulation.up(1);
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(2);
    simulation.supervisor.disconnected(simulation.now, WorkerId(2));
    simulation.carry_out();
    simulation.pass(10 * SECOND);
    assert!(
        replaced(&simulation).is_empty() && simulation.asked == [Order::Terminate(WorkerId(2))],
        "{:?}",
        simulation.asked
    );
    simulation.exit(2, 0);
    assert!(matches!(simulation.progress.last(), Some(Progress::ReloadFailed { .. })));
}

#[test]
fn going_back_is_tried_until_it_works() {
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.up(3);
    simulation.exit(4, 1);
    simulation.supervisor.roll_back(simulation.now);
    simulation.carry_out();
    simulation.exit(5, 1);
    assert!(
        simulation
            .progress
            .iter()
            .any(|progress| matches!(progress, Progress::RollBackFailed { .. }))
    );
    simulation.pass(10 * SECOND);
    simulation.up(6);
    assert_eq!(replaced(&simulation), [(1, 3), (3, 6)]);
    simulation.pass(60 * SECOND);
    assert_eq!(simulation.forks, 6);
}

#[test]
fn who_will_speak_is_not_ready_before_it_has_been_loaded() {
    let mut simulation = Simulation::new(1);
    simulation.supervisor.expect_ipc(simulation.now, WorkerId(1));
    let is_ready = |simulation: &Simulation| {
        simulation.supervisor.standing(simulation.now, WorkerId(1)).is_some_and(|(ready, _)| ready)
    };
    simulation.pass(20 * SECOND);
    assert!(!is_ready(&simulation), "the machine is slow");
    simulation.supervisor.online(simulation.now, WorkerId(1), true);
    simulation.pass(2 * SECOND);
    assert!(!is_ready(&simulation), "it may listen yet");
    simulation.pass(2 * SECOND);
    assert!(is_ready(&simulation));
}

#[test]
fn a_slot_whose_back_off_ends_in_a_reload_has_to_show_what_it_can_like_the_others() {
    let begin = || {
        let mut simulation = Simulation::with(changed(Config::new(2), |config| {
            config.replace.ready_when = ReadyWhen::Listening;
        }));
        (1..=2).for_each(|worker| simulation.up(worker));
        // The second slot has a long back-off, which ends while the first one's new worker settles.
        for _ in 0..4 {
            simulation.exit(simulation.of(1), 1);
            simulation.pass(5 * SECOND);
        }
        simulation.exit(simulation.of(1), 1);
        assert_eq!(simulation.of(1), 0);
        simulation.supervisor.reload(simulation.now);
        simulation.carry_out();
        let first = simulation.next_worker;
        simulation.up(first);
        simulation.pass(Duration::from_millis(1700));
        let second = simulation.of(1);
        assert!(second > first, "its back-off is over");
        simulation.pass(SECOND);
        assert!(replaced(&simulation).contains(&(1, first)));
        assert_eq!(
            simulation.supervisor.state(),
            SupervisorState::Reloading,
            "the second one is not ready"
        );
        (simulation, second)
    };
    let (mut simulation, second) = begin();
    simulation.up(second);
    assert_eq!(simulation.progress.last(), Some(&Progress::Recovered { workers: 2 }));
    assert!(simulation.progress.contains(&Progress::ReloadFinished));
    // One that ends, or is never ready, ends the reload.
    let (mut simulation, second) = begin();
    simulation.exit(second, 1);
    assert!(
        simulation
            .progress
            .iter()
            .any(|progress| matches!(progress, Progress::ReloadFailed { .. })),
        "{:?}",
        simulation.progress
    );
    let (mut simulation, _) = begin();
    simulation.pass(30 * SECOND);
    assert!(
        simulation
            .progress
            .iter()
            .any(|progress| matches!(progress, Progress::ReloadFailed { .. })),
        "{:?}",
        simulation.progress
    );
}

#[test]
fn what_becomes_of_an_app_whose_reload_fails_is_told() {
    let then = |simulation: &Simulation| {
        let then = |progress: &Progress| {
            if let Progress::ReloadFailed { then, .. } = progress { Some(*then) } else { None }
        };
        simulation.progress.iter().rev().find_map(then)
    };
    let reload = |simulation: &mut Simulation| {
        simulation.supervisor.reload(simulation.now);
        simulation.carry_out();
    };
    let mut simulation = Simulation::new(2);
    (1..=2).for_each(|worker| simulation.up(worker));
    reload(&mut simulation);
    simulation.exit(3, 1);
    assert_eq!(then(&simulation), Some(Afterwards::KeepsRunning));
    reload(&mut simulation);
    simulation.supervisor.pause(simulation.now);
    simulation.carry_out();
    assert_eq!(then(&simulation), Some(Afterwards::Ends));
    (1..=simulation.next_worker).for_each(|worker| simulation.exit(worker, 0));
    reload(&mut simulation);
    simulation.exit(simulation.next_worker, 1);
    assert_eq!(
        (then(&simulation), simulation.supervisor.state()),
        (Some(Afterwards::Paused), SupervisorState::Paused)
    );
    let mut simulation = Simulation::new(2);
    simulation.up(1);
    (1..=2).for_each(|worker| simulation.exit(worker, 1));
    reload(&mut simulation);
    simulation.exit(simulation.next_worker, 1);
    assert_eq!(
        (then(&simulation), simulation.supervisor.state()),
        (Some(Afterwards::Retries), SupervisorState::Degraded)
    );
}

#[test]
fn a_fork_that_takes_long_is_awaited_until_its_slot_has_a_worker_or_is_not_to_have_one() {
    let mut supervisor = Supervisor::new(Config::new(2));
    let awaited = |supervisor: &Supervisor| [0, 1].map(|slot| supervisor.awaits_fork(Slot(slot)));
    supervisor.start(Time(0));
    assert_eq!(awaited(&supervisor), [true, true]);
    supervisor.forked(Time(1), Slot(0), WorkerId(1));
    assert_eq!(awaited(&supervisor), [false, true]);
    supervisor.fork_failed(Time(2), Slot(1), "no memory".into(), false);
    assert_eq!(awaited(&supervisor), [false, false], "it is ordered again after a while");
    // Beside the old one, and instead of waiting for the restart.
    supervisor.reload(Time(3));
    assert_eq!(awaited(&supervisor), [true, false]);
    supervisor.forked(Time(4), Slot(0), WorkerId(2));
    assert_eq!(awaited(&supervisor), [false, false]);
    supervisor.scale(Time(5), 3);
    assert!(supervisor.awaits_fork(Slot(2)));
    supervisor.scale(Time(6), 2);
    assert!(!supervisor.awaits_fork(Slot(2)));
    supervisor.pause(Time(7));
    assert_eq!(awaited(&supervisor), [false, false]);
    supervisor.reload(Time(8));
    assert!(supervisor.awaits_fork(Slot(0)));
    supervisor.stop(Time(9));
    assert_eq!(awaited(&supervisor), [false, false]);
}
