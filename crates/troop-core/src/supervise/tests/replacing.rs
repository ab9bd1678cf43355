//! Reloads, recycling, and when a worker is ready to take another one's place.

use super::*;

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
    let mut w = World::new(1);
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
    assert!(w.asked.contains(&Order::Terminate(WorkerId(3))) && !w.asked.contains(&Order::Disconnect(WorkerId(1))));
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
    assert_eq!(world.progress.last(), Some(&Progress::ReloadFinished));
    for worker in [2, 3, 5] {
        world.exit(worker, 0);
    }
    assert_eq!(world.forks, 5);
    world.supervisor.stop(world.now);
    world.carry_out();
    world.exit(4, 0);
    assert_eq!(world.outcome, Some(Outcome::Stopped));
}

fn replaced(world: &World) -> Vec<(u32, u32)> {
    let pair = |progress: &Progress| if let Progress::Replaced { old, new } = progress { Some((old.0, new.0)) } else { None };
    world.progress.iter().filter_map(pair).collect()
}

#[test]
fn the_first_new_worker_must_show_that_it_stays() {
    let mut world = World::with(Config::new(3));
    (1..=3).for_each(|worker| world.up(worker));
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(4);
    world.pass(Duration::from_millis(1_900));
    assert_eq!((world.forks, world.asked.len()), (4, 0));
    // It listens, and dies a moment later: nobody was sent away for it.
    world.exit(4, 1);
    assert!(matches!(world.progress.last(), Some(Progress::ReloadFailed { .. })) && world.asked.is_empty());
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(5);
    world.pass(2 * SECOND);
    // The others need only be ready.
    world.up(6);
    world.up(7);
    assert_eq!((replaced(&world), world.progress.last()), (vec![(1, 5), (2, 6), (3, 7)], Some(&Progress::ReloadFinished)));
}

#[test]
fn a_new_worker_that_dies_later_in_the_reload_ends_it_too_and_its_kin_are_rolled_back() {
    let mut world = World::new(3);
    (1..=3).for_each(|worker| world.up(worker));
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(4);
    world.up(5);
    world.exit(5, 7);
    let failed = world.progress.iter().position(|progress| matches!(progress, Progress::ReloadFailed { .. }));
    let restarting = world.progress.iter().position(|progress| matches!(progress, Progress::Restarting { .. }));
    // Who is told of it can have the rest started as before.
    assert!(failed.is_some() && failed < restarting);
    assert!(world.asked.contains(&Order::Terminate(WorkerId(6))) && !world.asked.contains(&Order::Disconnect(WorkerId(3))));
    world.supervisor.roll_back(world.now);
    world.carry_out();
    world.pass(SECOND);
    assert!(world.progress.contains(&Progress::RollingBack { workers: 1 }));
    world.up(7);
    assert_eq!(replaced(&world).last(), Some(&(4, 7)));
    assert!(!world.progress.contains(&Progress::ReloadFinished));
}

#[test]
fn as_many_start_beside_the_old_ones_as_is_allowed() {
    let mut world = World::with(Config { max_surge: 2, min_ready_time: Duration::ZERO, ..Config::new(5) });
    (1..=5).for_each(|worker| world.up(worker));
    world.supervisor.reload(world.now);
    world.carry_out();
    // The first one alone, then two at a time.
    assert_eq!(world.forks, 6);
    world.up(6);
    assert_eq!(world.forks, 8);
    world.up(8);
    assert_eq!((world.forks, replaced(&world)), (9, vec![(1, 6), (3, 8)]));
}

#[test]
fn where_there_is_no_room_for_more_the_old_one_leaves_first() {
    let mut world = World::with(Config { max_surge: 0, max_unavailable: 1, min_ready_time: Duration::ZERO, ..Config::new(2) });
    (1..=2).for_each(|worker| world.up(worker));
    world.supervisor.reload(world.now);
    world.carry_out();
    assert_eq!((world.forks, &world.asked[..]), (2, &[Order::Disconnect(WorkerId(1))][..]));
    world.exit(1, 0);
    assert_eq!(world.forks, 3);
    world.up(3);
    assert_eq!(world.asked.last(), Some(&Order::Disconnect(WorkerId(2))));
    world.exit(2, 0);
    world.exit(4, 1);
    assert!(world.progress.iter().any(|progress| matches!(progress, Progress::ReloadFailed { .. })));
    // The slot is filled all the same.
    world.pass(SECOND);
    assert_eq!(world.forks, 5);
}

#[test]
fn one_worker_is_recycled_at_a_time_and_a_reload_goes_before_it() {
    let mut world = World::new(2);
    (1..=2).for_each(|worker| world.up(worker));
    assert!(world.supervisor.recycle(world.now, WorkerId(2), "it is old".into()));
    assert!(!world.supervisor.recycle(world.now, WorkerId(1), "it is old".into()));
    world.carry_out();
    world.up(3);
    assert_eq!((replaced(&world), world.supervisor.state()), (vec![(2, 3)], SupervisorState::Running));
    assert!(world.supervisor.recycle(world.now, WorkerId(1), "it is old".into()));
    world.carry_out();
    world.exit(4, 1);
    assert!(matches!(world.progress.last(), Some(Progress::RecycleFailed { worker: WorkerId(1), .. })));
    assert!(world.supervisor.recycle(world.now, WorkerId(1), "it is old".into()));
    world.supervisor.reload(world.now);
    world.carry_out();
    (5..=7).for_each(|worker| world.up(worker));
    assert_eq!(world.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn ready_is_who_says_so() {
    let mut world = World::with(Config { readiness: Readiness::Notified, min_ready_time: Duration::ZERO, ..Config::new(1) });
    world.up(1);
    world.pass(10 * SECOND);
    assert_eq!(world.supervisor.standing(world.now, WorkerId(1)), Some((false, 1)));
    world.supervisor.reported_ready(world.now, WorkerId(1));
    assert_eq!(world.supervisor.standing(world.now, WorkerId(1)), Some((true, 1)));
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(2);
    assert!(replaced(&world).is_empty());
    world.supervisor.reported_ready(world.now, WorkerId(2));
    world.carry_out();
    assert_eq!((replaced(&world), world.supervisor.standing(world.now, WorkerId(2))), (vec![(1, 2)], Some((true, 2))));
}

#[test]
fn those_that_never_leave_do_not_become_more_and_more() {
    let mut world = World::with(Config { grace: Duration::from_secs(86_400), min_ready_time: Duration::ZERO, ..Config::new(1) });
    world.up(1);
    for worker in 2..=20 {
        world.supervisor.reload(world.now);
        world.carry_out();
        world.up(worker);
        world.pass(2 * SECOND);
    }
    let killed = world.asked.iter().filter(|order| matches!(order, Order::Kill(_))).count();
    assert_eq!((killed, world.asked.iter().find(|order| matches!(order, Order::Kill(_)))), (13, Some(&Order::Kill(WorkerId(1)))));
}

#[test]
fn however_fast_reloads_follow_each_other_every_worker_has_a_moment_to_end() {
    let mut world = World::with(Config { min_ready_time: Duration::ZERO, ..Config::new(1) });
    world.up(1);
    for worker in 2..=30 {
        world.supervisor.reload(world.now);
        world.carry_out();
        world.up(worker);
        world.pass(Duration::from_millis(50));
    }
    assert!(!world.asked.iter().any(|order| matches!(order, Order::Kill(_))), "{:?}", world.asked);
}

#[test]
fn who_does_not_listen_is_ready_after_a_while_and_sooner_if_it_could_not() {
    let mut world = World::new(2);
    world.supervisor.online(world.now, WorkerId(1), true);
    let standing = |world: &World, worker| world.supervisor.standing(world.now, WorkerId(worker)).map(|(ready, _)| ready);
    world.pass(SECOND);
    assert_eq!((standing(&world, 1), standing(&world, 2)), (Some(false), Some(true)));
    world.pass(2 * SECOND);
    assert_eq!(standing(&world, 1), Some(true));
}

#[test]
fn a_reload_that_is_cut_short_is_told_to_have_failed() {
    let mut world = World::new(1);
    world.up(1);
    world.supervisor.reload(world.now);
    world.supervisor.pause(world.now);
    world.carry_out();
    assert!(matches!(world.progress.last(), Some(Progress::ReloadFailed { .. })), "{:?}", world.progress);
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(world.next_worker);
    assert_eq!(world.progress.last(), Some(&Progress::ReloadFinished));
}

#[test]
fn settling_begins_when_a_worker_is_ready() {
    let mut world = World::with(Config::new(1));
    world.up(1);
    world.supervisor.reload(world.now);
    world.carry_out();
    // It takes its time to start, listens, and dies.
    world.pass(5 * SECOND);
    world.up(2);
    world.pass(SECOND);
    world.exit(2, 1);
    assert!(replaced(&world).is_empty() && matches!(world.progress.last(), Some(Progress::ReloadFailed { .. })));
}

#[test]
fn a_new_version_has_to_show_itself_in_vacant_slots_too() {
    let mut world = World::new(1);
    world.exit(1, 1);
    world.supervisor.reload(world.now);
    world.carry_out();
    assert_eq!((world.forks, world.supervisor.state()), (2, SupervisorState::Reloading));
    world.exit(2, 1);
    assert!(world.progress.iter().any(|progress| matches!(progress, Progress::ReloadFailed { .. })));
    assert!(!world.progress.contains(&Progress::ReloadFinished));
}

#[test]
fn who_closes_its_channel_takes_nobodys_place() {
    let mut world = World::with(Config::new(1));
    world.up(1);
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(2);
    world.supervisor.disconnected(world.now, WorkerId(2));
    world.carry_out();
    world.pass(10 * SECOND);
    assert!(replaced(&world).is_empty() && world.asked == [Order::Terminate(WorkerId(2))], "{:?}", world.asked);
    world.exit(2, 0);
    assert!(matches!(world.progress.last(), Some(Progress::ReloadFailed { .. })));
}

#[test]
fn going_back_is_tried_until_it_works() {
    let mut world = World::new(2);
    (1..=2).for_each(|worker| world.up(worker));
    world.supervisor.reload(world.now);
    world.carry_out();
    world.up(3);
    world.exit(4, 1);
    world.supervisor.roll_back(world.now);
    world.carry_out();
    world.exit(5, 1);
    assert!(world.progress.iter().any(|progress| matches!(progress, Progress::RollBackFailed { .. })));
    world.pass(10 * SECOND);
    world.up(6);
    assert_eq!(replaced(&world), [(1, 3), (3, 6)]);
    world.pass(60 * SECOND);
    assert_eq!(world.forks, 6);
}

#[test]
fn who_will_speak_is_not_ready_before_it_has_been_loaded() {
    let mut world = World::new(1);
    world.supervisor.expect_ipc(world.now, WorkerId(1));
    let is_ready = |world: &World| world.supervisor.standing(world.now, WorkerId(1)).is_some_and(|(ready, _)| ready);
    world.pass(20 * SECOND);
    assert!(!is_ready(&world), "the machine is slow");
    world.supervisor.online(world.now, WorkerId(1), true);
    world.pass(2 * SECOND);
    assert!(!is_ready(&world), "it may listen yet");
    world.pass(2 * SECOND);
    assert!(is_ready(&world));
}

#[test]
fn a_slot_whose_back_off_ends_in_a_reload_has_to_show_what_it_can_like_the_others() {
    let begin = || {
        let mut world = World::with(Config { readiness: Readiness::Listening, ..Config::new(2) });
        (1..=2).for_each(|worker| world.up(worker));
        // The second slot has a long back-off, which ends while the first one's new worker settles.
        for _ in 0..4 {
            world.exit(world.of(1), 1);
            world.pass(5 * SECOND);
        }
        world.exit(world.of(1), 1);
        assert_eq!(world.of(1), 0);
        world.supervisor.reload(world.now);
        world.carry_out();
        let first = world.next_worker;
        world.up(first);
        world.pass(Duration::from_millis(1700));
        let second = world.of(1);
        assert!(second > first, "its back-off is over");
        world.pass(SECOND);
        assert!(replaced(&world).contains(&(1, first)));
        assert_eq!(world.supervisor.state(), SupervisorState::Reloading, "the second one is not ready");
        (world, second)
    };
    let (mut world, second) = begin();
    world.up(second);
    assert_eq!(world.progress.last(), Some(&Progress::Recovered { workers: 2 }));
    assert!(world.progress.contains(&Progress::ReloadFinished));
    // One that ends, or is never ready, ends the reload.
    let (mut world, second) = begin();
    world.exit(second, 1);
    assert!(world.progress.iter().any(|progress| matches!(progress, Progress::ReloadFailed { .. })), "{:?}", world.progress);
    let (mut world, _) = begin();
    world.pass(30 * SECOND);
    assert!(world.progress.iter().any(|progress| matches!(progress, Progress::ReloadFailed { .. })), "{:?}", world.progress);
}

#[test]
fn what_becomes_of_an_app_whose_reload_fails_is_told() {
    let then = |world: &World| {
        let then = |progress: &Progress| if let Progress::ReloadFailed { then, .. } = progress { Some(*then) } else { None };
        world.progress.iter().rev().find_map(then)
    };
    let reload = |world: &mut World| {
        world.supervisor.reload(world.now);
        world.carry_out();
    };
    let mut world = World::new(2);
    (1..=2).for_each(|worker| world.up(worker));
    reload(&mut world);
    world.exit(3, 1);
    assert_eq!(then(&world), Some(Afterwards::GoesOn));
    reload(&mut world);
    world.supervisor.pause(world.now);
    world.carry_out();
    assert_eq!(then(&world), Some(Afterwards::Ends));
    (1..=world.next_worker).for_each(|worker| world.exit(worker, 0));
    reload(&mut world);
    world.exit(world.next_worker, 1);
    assert_eq!((then(&world), world.supervisor.state()), (Some(Afterwards::Paused), SupervisorState::Paused));
    let mut world = World::new(2);
    world.up(1);
    (1..=2).for_each(|worker| world.exit(worker, 1));
    reload(&mut world);
    world.exit(world.next_worker, 1);
    assert_eq!((then(&world), world.supervisor.state()), (Some(Afterwards::Retries), SupervisorState::Degraded));
}
