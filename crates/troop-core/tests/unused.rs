//! Listeners that no worker has: open as long as somebody who is starting may ask for them, and closed then.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod world;

use proptest::prelude::*;
use troop_core::WorkerId;
use troop_core::event::{Address, AddressType};
use troop_core::primary::{Config, Successors};
use troop_core::supervise::Claim;
use world::{Input, World, config, input};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::with_cases(300) })]

    /// Whatever has happened: when nobody is to come and whoever was starting has had its time, every listener has a worker.
    #[test]
    fn no_listener_stays_open_that_nobody_will_ask_for(inputs in prop::collection::vec(input(), 0..120)) {
        let mut world = World::new(Config { hang_timeout: None, ..config() });
        for input in inputs {
            world.happen(input)?;
        }
        world.happen(Input::Successors { which: 2 })?;
        world.happen(Input::Pass { ms: 31_000 })?;
        prop_assert!(!world.primary.has_unused());
        for id in world.primary.listeners() {
            prop_assert!(world.primary.listener_load(id).0 > 0, "nobody listens on {:?}", id);
        }
        // What waited there does not wait any more.
        prop_assert!(world.waiting.is_empty() || !world.listeners.is_empty());
    }

    /// The same where workers are supervised, and listeners outlive workers that close them by themselves.
    #[test]
    fn no_listener_of_supervised_workers_stays_open_that_nobody_will_ask_for(inputs in prop::collection::vec(input(), 0..120)) {
        let mut world = World::new(Config { hang_timeout: None, ..config() });
        world.primary.set_supervised(true);
        for input in inputs {
            world.happen(input)?;
        }
        world.happen(Input::Successors { which: 2 })?;
        world.happen(Input::Pass { ms: 61_000 })?;
        prop_assert!(!world.primary.has_unused());
        for id in world.primary.listeners() {
            prop_assert!(world.primary.listener_load(id).0 > 0, "nobody listens on {:?}", id);
        }
    }

    /// While a successor is to come, only the program's own wish closes a listener.
    #[test]
    fn no_listener_closes_that_a_successor_may_ask_for(inputs in prop::collection::vec(input(), 0..120)) {
        let mut world = World::new(config());
        world.primary.set_supervised(true);
        world.successors = Successors::Awaited;
        let mut most = 0;
        for input in inputs {
            let closes = |input: &Input| {
                matches!(input, Input::CloseUnused | Input::Close { .. } | Input::Disconnect { keep: false, .. }
                    | Input::Successors { .. } | Input::Query { fails: true, .. } | Input::Acknowledge { arrived: false, .. })
            };
            if !closes(&input) {
                world.happen(input)?;
                prop_assert!(world.listeners.len() >= most, "a listener was closed");
                most = world.listeners.len();
            }
        }
    }
}

/// A worker that listens on these ports.
fn listening(world: &mut World, ports: &[u16]) -> WorkerId {
    let worker = starting(world);
    listen(world, worker, ports);
    worker
}

fn starting(world: &mut World) -> WorkerId {
    world.happen(Input::Fork { troop: false }).unwrap();
    *world.workers.keys().last().unwrap()
}

fn listen(world: &mut World, worker: WorkerId, ports: &[u16]) {
    for port in ports {
        world.of_worker(worker, Input::Query { worker: 0, port: *port, fails: false });
        world.act().unwrap();
        world.of_worker(worker, Input::Listening { worker: 0, port: *port });
        world.act().unwrap();
    }
}

fn dies(world: &mut World, worker: WorkerId) {
    world.of_worker(worker, Input::Exit { worker: 0 });
    world.act().unwrap();
}

fn leaves(world: &mut World, worker: WorkerId) {
    world.of_worker(worker, Input::Disconnect { worker: 0, keep: true });
    world.act().unwrap();
}

fn pass(world: &mut World, ms: u64) {
    world.happen(Input::Pass { ms }).unwrap();
}

/// The workers of these tests say nothing for a long time.
fn patient() -> Config {
    Config { hang_timeout: None, ..Config::default() }
}

fn supervised() -> World {
    let mut world = World::new(patient());
    world.primary.set_supervised(true);
    world.successors = Successors::Nobody;
    world
}

#[test]
fn a_listener_that_only_the_last_slot_had_closes_at_once_when_that_goes() {
    let mut world = supervised();
    let (_, second) = (listening(&mut world, &[1]), listening(&mut world, &[1, 2]));
    pass(&mut world, 5_000);
    world.happen(Input::Accept { listener: 1 }).unwrap();
    assert_eq!(world.listeners.len(), 2);
    leaves(&mut world, second);
    assert_eq!((world.listeners.len(), world.closed.as_slice()), (1, &[0][..]));
}

#[test]
fn a_death_keeps_the_listener_until_the_successor_has_listened_elsewhere_and_what_waits_is_closed_then() {
    let mut world = supervised();
    let first = listening(&mut world, &[1]);
    pass(&mut world, 60_000);
    world.successors = Successors::Awaited;
    dies(&mut world, first);
    world.happen(Input::Accept { listener: 0 }).unwrap();
    pass(&mut world, 600_000);
    let second = starting(&mut world);
    world.successors = Successors::Nobody;
    // It is loaded slowly.
    pass(&mut world, 29_000);
    assert_eq!((world.listeners.len(), world.waiting.len()), (1, 1));
    listen(&mut world, second, &[2]);
    pass(&mut world, 2_900);
    assert_eq!(world.listeners.len(), 2, "it may ask for more");
    pass(&mut world, 100);
    assert_eq!((world.listeners.len(), world.closed.as_slice()), (1, &[1][..]));
    assert!(world.waiting.is_empty() && world.open.is_empty());
}

#[test]
fn a_successor_that_asks_late_for_its_second_listener_finds_it_and_its_clients() {
    let mut world = supervised();
    let first = listening(&mut world, &[1, 2]);
    pass(&mut world, 60_000);
    dies_and_returns(&mut world, first, &[1]);
    world.happen(Input::Accept { listener: 1 }).unwrap();
    pass(&mut world, 2_000);
    let second = *world.workers.keys().last().unwrap();
    listen(&mut world, second, &[2]);
    assert!(world.closed.is_empty() && world.waiting.is_empty());
    assert_eq!(world.listeners.len(), 2);
}

fn dies_and_returns(world: &mut World, worker: WorkerId, ports: &[u16]) -> WorkerId {
    world.successors = Successors::Awaited;
    dies(world, worker);
    let next = listening(world, ports);
    world.successors = Successors::Nobody;
    world.act().unwrap();
    next
}

#[test]
fn workers_with_a_listener_of_their_own_leave_none_behind_in_any_number_of_lives() {
    let mut world = supervised();
    let _other = listening(&mut world, &[99]);
    let mut worker = listening(&mut world, &[100]);
    for port in 101..130 {
        worker = dies_and_returns(&mut world, worker, &[port]);
        pass(&mut world, 3_100);
        assert_eq!(world.listeners.len(), 2, "in life {port}");
    }
    // Also where they live shorter than they are waited for.
    for port in 130..200 {
        worker = dies_and_returns(&mut world, worker, &[port]);
        pass(&mut world, 100);
    }
    assert!(world.listeners.len() <= 66);
    pass(&mut world, 3_100);
    assert_eq!(world.listeners.len(), 2);
}

#[test]
fn where_the_program_forks_a_listener_waits_for_a_worker_that_was_forked_later() {
    let mut world = World::new(patient());
    let (first, second) = (listening(&mut world, &[1]), listening(&mut world, &[2]));
    dies(&mut world, first);
    pass(&mut world, 600_000);
    assert_eq!(world.listeners.len(), 2, "whoever comes may ask for it");
    let third = starting(&mut world);
    pass(&mut world, 20_000);
    assert_eq!(world.listeners.len(), 2);
    listen(&mut world, third, &[2]);
    pass(&mut world, 3_100);
    assert_eq!(world.listeners.len(), 1);
    // Told to leave by the program, as in Node: nobody is to come.
    world.of_worker(second, Input::Disconnect { worker: 0, keep: false });
    world.of_worker(third, Input::Disconnect { worker: 0, keep: false });
    world.act().unwrap();
    assert!(world.listeners.is_empty());
}

#[test]
fn that_nobody_will_be_forked_is_believed_after_a_moment() {
    let mut world = World::new(patient());
    let first = listening(&mut world, &[1]);
    listening(&mut world, &[2]);
    pass(&mut world, 60_000);
    // Said before the program could know of the end.
    world.successors = Successors::Nobody;
    dies(&mut world, first);
    pass(&mut world, 2_900);
    assert_eq!(world.listeners.len(), 2);
    pass(&mut world, 200);
    assert_eq!(world.listeners.len(), 1);
}

#[test]
fn a_worker_that_never_says_a_word_keeps_listeners_open_for_a_while_only() {
    let mut world = supervised();
    let first = listening(&mut world, &[1]);
    listening(&mut world, &[2]);
    // Without `online`.
    let silent = world.primary.fork();
    world.primary.spawned(silent, 4711, None, 100);
    dies(&mut world, first);
    pass(&mut world, 29_000);
    assert_eq!(world.listeners.len(), 2);
    pass(&mut world, 2_000);
    assert_eq!(world.listeners.len(), 1);
}

#[test]
fn a_socket_that_is_open_elsewhere_too_is_not_closed() {
    let mut world = supervised();
    let first = listening(&mut world, &[1]);
    listening(&mut world, &[2]);
    let listener = world.primary.listens_on(first).next().unwrap();
    world.primary.keep_open(listener);
    pass(&mut world, 10_000);
    leaves(&mut world, first);
    pass(&mut world, 60_000);
    assert_eq!((world.listeners.len(), world.closed.len()), (2, 0));
    world.end().unwrap();
}

#[test]
fn a_fixed_address_that_a_successor_does_not_take_over_is_missed_and_one_that_was_let_go_is_not() {
    let mut world = supervised();
    listening(&mut world, &[9]);
    let worker = listening(&mut world, &[1]);
    let next = dies_and_returns(&mut world, worker, &[2]);
    pass(&mut world, 3_100);
    assert_eq!((world.listeners.len(), world.missed.as_slice()), (2, &[Some(1)][..]));
    // Nobody comes in its place: fewer are wanted, or it has done what it was to do.
    leaves_for_good(&mut world, next);
    assert_eq!((world.listeners.len(), world.missed.len()), (1, 1));
    // What the kernel chose is nobody's loss, nor what a new generation has done without.
    let worker = listening(&mut world, &[0, 4]);
    world.successors = Successors::Awaited;
    dies(&mut world, worker);
    listening(&mut world, &[3]);
    world.primary.forget_shared();
    world.successors = Successors::Nobody;
    pass(&mut world, 3_100);
    assert_eq!((world.listeners.len(), world.missed.len()), (2, 1));
}

fn leaves_for_good(world: &mut World, worker: WorkerId) {
    world.primary.disconnect(worker, true, None);
    world.primary.excuse(worker);
    world.act().unwrap();
}

/// As Node's `cluster.worker.disconnect()` begins, and `server.close()`.
fn closes(world: &mut World, worker: WorkerId, which: usize) {
    world.of_worker(worker, Input::Close { worker: 0, listener: which });
    world.act().unwrap();
}

#[test]
fn a_worker_that_leaves_by_itself_keeps_its_listener_for_its_successor() {
    let mut world = supervised();
    listening(&mut world, &[9]);
    let worker = listening(&mut world, &[1]);
    pass(&mut world, 60_000);
    closes(&mut world, worker, 1);
    // It has connections to finish.
    pass(&mut world, 20_000);
    world.happen(Input::Accept { listener: 1 }).unwrap();
    world.of_worker(worker, Input::Goodbye { worker: 0 });
    pass(&mut world, 5_000);
    assert_eq!((world.listeners.len(), world.waiting.len()), (2, 1));
    // Its channel closes, its process ends, and its successor listens again.
    let next = dies_and_returns(&mut world, worker, &[1]);
    pass(&mut world, 60_000);
    assert!(world.closed.is_empty() && world.waiting.is_empty() && world.primary.listens_on(next).count() == 1);
}

#[test]
fn a_worker_that_closes_a_listener_and_goes_on_has_it_closed_after_a_while_and_nobody_misses_it() {
    for (ports, ms) in [(&[1, 2][..], 3_000), (&[1], 30_000)] {
        let mut world = supervised();
        listening(&mut world, &[9]);
        let worker = listening(&mut world, ports);
        pass(&mut world, 60_000);
        closes(&mut world, worker, 1);
        pass(&mut world, ms - 100);
        assert_eq!(world.listeners.len(), 1 + ports.len());
        pass(&mut world, 200);
        assert_eq!((world.listeners.len(), world.missed.len()), (ports.len(), 0));
    }
    // Where nobody is supervised it closes at once, as in Node.
    let mut world = World::new(patient());
    let worker = listening(&mut world, &[1]);
    closes(&mut world, worker, 0);
    assert!(world.listeners.is_empty());
}

// ---- what successors have to take over ----

fn claims(world: &World, only: bool) -> Vec<(Option<i64>, usize, bool)> {
    world.primary.claims(only).iter().map(|claim| (claim.at.port, claim.holders.len(), claim.is_shared)).collect()
}

const SHARED: bool = true;
const OWN: bool = false;

#[test]
fn what_workers_listen_on_is_claimed_and_what_several_slots_do_is_shared() {
    let mut world = supervised();
    let first = listening(&mut world, &[1, 2]);
    assert_eq!(claims(&world, false), [(Some(1), 1, OWN), (Some(2), 1, OWN)]);
    listening(&mut world, &[1, 3]);
    assert_eq!(claims(&world, false), [(Some(1), 2, SHARED), (Some(2), 1, OWN), (Some(3), 1, OWN)]);
    // The only one's all are.
    assert_eq!(claims(&world, true), [(Some(1), 2, SHARED), (Some(2), 1, SHARED), (Some(3), 1, SHARED)]);
    // Also when one of them is just not there; its own waits for whoever comes.
    world.successors = Successors::Awaited;
    dies(&mut world, first);
    assert_eq!(claims(&world, false), [(Some(1), 1, SHARED), (Some(2), 0, OWN), (Some(3), 1, OWN)]);
}

#[test]
fn a_worker_and_its_successor_share_nothing() {
    let mut world = supervised();
    listening(&mut world, &[1]);
    let next = world.primary.fork();
    world.primary.spawned(next, 4711, Some(0), 100);
    world.workers.insert(next, world::Worker { connected: true, ..world::Worker::default() });
    listen(&mut world, next, &[1]);
    assert_eq!(claims(&world, false), [(Some(1), 2, OWN)]);
}

#[test]
fn what_was_left_open_for_successors_is_claimed_where_nobody_serves() {
    let mut world = supervised();
    world.successors = Successors::Awaited;
    let all = [listening(&mut world, &[1, 2]), listening(&mut world, &[1])];
    all.iter().for_each(|worker| leaves(&mut world, *worker));
    assert_eq!(claims(&world, false), [(Some(1), 0, SHARED), (Some(2), 0, OWN)]);
    // A generation that has proven good without it begins anew.
    listening(&mut world, &[1]);
    world.primary.forget_shared();
    assert_eq!(claims(&world, false), [(Some(1), 1, OWN)]);
}

#[test]
fn what_workers_of_a_reload_that_failed_have_opened_is_neither_kept_nor_claimed() {
    let mut world = supervised();
    world.successors = Successors::Awaited;
    let old = listening(&mut world, &[1]);
    leaves(&mut world, old);
    let before: Vec<_> = world.primary.listeners().collect();
    let new = listening(&mut world, &[2]);
    leaves(&mut world, new);
    assert_eq!(claims(&world, true), [(Some(1), 0, SHARED), (Some(2), 0, SHARED)]);
    world.primary.close_unused_but(&before);
    world.act().unwrap();
    assert_eq!((claims(&world, true), world.listeners.len()), (vec![(Some(1), 0, SHARED)], 1));
}

#[test]
fn what_the_kernel_chooses_and_what_is_named_after_a_process_is_not_claimed() {
    let mut world = supervised();
    let worker = starting(&mut world);
    let pid = world.primary.status(worker).unwrap().pid;
    // The world has no Unix sockets; these go to the primary alone.
    let names = ["/run/1/web", "/run/ps-{}.sock", "/run/{}/web", "/run/ps-{}0.sock", "/run/web.sock"];
    let mut seq = 1;
    for name in names.map(|name| name.replace("{}", &pid.to_string())) {
        seq += 1;
        for act in ["queryServer", "listening"] {
            let line = format!(
                r#"{{"cmd":"NODE_CLUSTER","act":"{act}","seq":{seq},"index":0,"address":"{name}","port":-1,"addressType":-1}}"#
            );
            world.say(worker, &line);
            while let Some(action) = world.primary.next_action() {
                if let troop_core::primary::Action::Bind { listener, .. } = action {
                    world.primary.bound(world.now, listener, Ok(None));
                }
            }
        }
    }
    let claimed: Vec<Claim> = world.primary.claims(true);
    let at = |name: String| Address { address: Some(name), port: Some(-1), address_type: AddressType::Unix, fd: None };
    let claimed: Vec<Address> = claimed.into_iter().map(|claim| claim.at).collect();
    assert_eq!(claimed, [at(format!("/run/ps-{pid}0.sock")), at("/run/web.sock".into())]);
    let mut world = supervised();
    listening(&mut world, &[0]);
    listening(&mut world, &[0]);
    assert!(claims(&world, false).is_empty() && claims(&world, true).is_empty());
}
