//! Whatever happens in whatever order, every accepted connection is in exactly one place, and is released exactly once.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod world;

use std::time::Duration;

use proptest::prelude::*;
use troop_core::policy::Scheduling;
use troop_core::primary::Config;
use troop_core::{ListenerId, WorkerId};
use world::{Input, World, config, input};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn every_connection_is_in_one_place_and_released_once(inputs in prop::collection::vec(input(), 0..150)) {
        let mut world = World::new(config());
        for input in inputs {
            world.happen(input)?;
        }
        world.end()?;
    }

    /// Nobody who is free is left without work while there is some, once all pauses are over.
    #[test]
    fn no_connection_waits_beside_a_free_worker(inputs in prop::collection::vec(input(), 0..150)) {
        let mut world = World::new(Config { hang_timeout: None, ..config() });
        for input in inputs {
            world.happen(input)?;
        }
        world.calm = true;
        // Everybody takes what it has, reads its channel, and has time.
        for id in world.workers.keys().copied().collect::<Vec<_>>() {
            world.of_worker(id, Input::Blocked { worker: 0, blocked: false });
            world.of_worker(id, Input::Hold { worker: 0, held: false });
            world.act()?;
        }
        for _ in 0..20 {
            for id in world.workers.keys().copied().collect::<Vec<_>>() {
                world.of_worker(id, Input::Batch { worker: 0, taken: 255, returned: 0 });
                world.act()?;
            }
            world.happen(Input::Pass { ms: 600 })?;
        }
        // A new worker that asks for every listener gets all that waits.
        if world.workers.len() < 8 {
            world.happen(Input::Fork { troop: true })?;
            let newest = world.workers.len() - 1;
            for port in 1..7 {
                world.happen(Input::Query { worker: newest, port, fails: false })?;
                world.happen(Input::Listening { worker: newest, port })?;
            }
            let id = world.worker(newest).unwrap();
            for _ in 0..20 {
                world.of_worker(id, Input::Batch { worker: 0, taken: 255, returned: 0 });
                world.act()?;
                world.happen(Input::Pass { ms: 100 })?;
            }
            prop_assert!(world.waiting.is_empty(), "{:?} still wait", world.waiting);
        }
    }
}

// ---- single promises ----

fn troop_worker(world: &mut World, ports: &[u16]) -> WorkerId {
    world.happen(Input::Fork { troop: true }).unwrap();
    let n = world.workers.len() - 1;
    for port in ports {
        world.happen(Input::Query { worker: n, port: *port, fails: false }).unwrap();
    }
    world.worker(n).unwrap()
}

#[test]
fn an_answer_on_one_listener_frees_the_worker_for_its_others_at_once() {
    let mut world = World::new(Config { troop_window: 2, ..Config::default() });
    let worker = troop_worker(&mut world, &[1, 2]);
    for listener in [0, 0, 1] {
        world.happen(Input::Accept { listener }).unwrap();
    }
    assert_eq!((world.workers[&worker].holds.len(), world.waiting.len()), (2, 1), "the worker's window is full");
    world.happen(Input::Batch { worker: 0, taken: 1, returned: 0 }).unwrap();
    assert_eq!(world.waiting.len(), 0, "the worker has room, so the connection of the other listener must not wait for a tick");
}

#[test]
fn a_worker_that_does_not_answer_is_passed_over_the_sooner_if_the_policy_goes_by_how_busy_workers_are() {
    for (scheduling, patience) in [(Scheduling::RoundRobin, 50), (Scheduling::LeastConnections, 10), (Scheduling::PowerOfTwo, 10)]
    {
        let mut world = World::new(Config { scheduling, ..Config::default() });
        let slow = troop_worker(&mut world, &[1]);
        world.happen(Input::Accept { listener: 0 }).unwrap();
        world.now = world.now + Duration::from_millis(patience - 1);
        world.happen(Input::Accept { listener: 0 }).unwrap();
        assert_eq!(world.workers[&slow].holds.len(), 2, "patience is not over");
        world.now = world.now + Duration::from_millis(1);
        world.happen(Input::Accept { listener: 0 }).unwrap();
        assert_eq!((world.workers[&slow].holds.len(), world.waiting.len()), (2, 1), "nobody else is there, so it waits");
        let quick = troop_worker(&mut world, &[1]);
        world.happen(Input::Accept { listener: 0 }).unwrap();
        assert_eq!((world.workers[&slow].holds.len(), world.workers[&quick].holds.len()), (2, 2));
        assert!(world.waiting.is_empty());
    }
}

#[test]
fn a_list_with_one_wrong_number_still_answers_the_right_ones() {
    let mut world = World::new(Config::default());
    let worker = troop_worker(&mut world, &[1]);
    for _ in 0..3 {
        world.happen(Input::Accept { listener: 0 }).unwrap();
    }
    let seqs: Vec<u64> = world.workers[&worker].holds.keys().copied().collect();
    let line = format!(r#"{{"cmd":"NODE_TROOP","act":"taken","taken":[999999,{},{},{}]}}"#, seqs[0], seqs[1], seqs[2]);
    world.say(worker, &line);
    world.act().unwrap();
    assert!(world.open.is_empty(), "three connections were taken: {:?} are still held", world.open);
}

#[test]
fn connections_of_a_worker_that_leaves_by_itself_go_to_its_successor() {
    let mut world = World::new(Config::default());
    let first = troop_worker(&mut world, &[1]);
    let second = troop_worker(&mut world, &[1]);
    for _ in 0..4 {
        world.happen(Input::Accept { listener: 0 }).unwrap();
    }
    assert_eq!((world.workers[&first].holds.len(), world.workers[&second].holds.len()), (2, 2));
    world.happen(Input::Goodbye { worker: 0 }).unwrap();
    world.happen(Input::Exit { worker: 0 }).unwrap();
    assert!(!world.workers.contains_key(&first));
    assert_eq!((world.workers[&second].holds.len(), world.open.len()), (4, 4));
}

#[test]
fn a_connection_that_eight_workers_died_of_is_not_given_to_a_ninth() {
    let mut world = World::new(Config::default());
    troop_worker(&mut world, &[1]);
    world.happen(Input::Accept { listener: 0 }).unwrap();
    let mut deaths = 0;
    while !world.open.is_empty() {
        world.happen(Input::Exit { worker: 0 }).unwrap();
        deaths += 1;
        assert!(deaths <= 8, "it goes on killing workers");
        troop_worker(&mut world, &[1]);
    }
    assert_eq!(deaths, 8);
}

#[test]
fn time_in_which_the_primary_stood_still_makes_no_worker_hang() {
    let mut world = World::new(Config::default());
    let worker = troop_worker(&mut world, &[1]);
    world.happen(Input::Accept { listener: 0 }).unwrap();
    world.now = world.now + Duration::from_secs(600);
    world.primary.tick(world.now);
    world.act().unwrap();
    assert!(!world.primary.is_cut_off(worker));
    world.happen(Input::Pass { ms: 31_000 }).unwrap();
    assert!(world.primary.is_cut_off(worker), "half a minute later it does");
}

fn node_worker(world: &mut World, ports: &[u16]) -> WorkerId {
    world.happen(Input::Fork { troop: false }).unwrap();
    let n = world.workers.len() - 1;
    for port in ports {
        world.happen(Input::Query { worker: n, port: *port, fails: false }).unwrap();
    }
    world.worker(n).unwrap()
}

const ACK: &str = r#"{"cmd":"NODE_HANDLE_ACK"}"#;
const NACK: &str = r#"{"cmd":"NODE_HANDLE_NACK"}"#;

impl World {
    fn accept(&mut self, times: usize) {
        for _ in 0..times {
            self.happen(Input::Accept { listener: 0 }).unwrap();
        }
    }

    /// The worker says that it took this one, and nothing of the descriptor.
    fn takes(&mut self, worker: WorkerId, seq: u64) {
        self.say(worker, &format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":true,"seq":1}}"#));
        self.act().unwrap();
    }

    fn user_handle(&mut self, worker: WorkerId) -> u64 {
        self.of_worker(worker, Input::UserHandle { worker: 0 });
        self.act().unwrap();
        self.next_ticket
    }
}

/// Node 26 resets connections whose request it has not read when it disconnects.
#[test]
fn a_node_worker_is_told_to_disconnect_when_it_has_had_time_to_read_its_last_connection() {
    let told = |world: &World| world.sent.iter().any(|(_, line)| line.contains(r#""act":"disconnect""#));
    let mut world = World::new(Config::default());
    let worker = node_worker(&mut world, &[1]);
    world.accept(1);
    let (seq, _) = world.holds(worker, 0).unwrap();
    world.happen(Input::Disconnect { worker: 0, keep: true }).unwrap();
    world.happen(Input::Pass { ms: 5_000 }).unwrap();
    assert!(!told(&world), "a connection is still in flight");
    world.takes(worker, seq);
    world.happen(Input::Pass { ms: 90 }).unwrap();
    assert!(!told(&world), "its request may not have been read");
    for _ in 0..2 {
        world.happen(Input::Pass { ms: 100 }).unwrap();
    }
    assert!(told(&world));

    let mut idle = World::new(Config::default());
    let worker = node_worker(&mut idle, &[1]);
    idle.accept(1);
    let (seq, _) = idle.holds(worker, 0).unwrap();
    idle.takes(worker, seq);
    idle.happen(Input::Pass { ms: 200 }).unwrap();
    idle.happen(Input::Disconnect { worker: 0, keep: true }).unwrap();
    idle.happen(Input::Pass { ms: 1 }).unwrap();
    assert!(told(&idle), "one that has read everything is told at once");
}

#[test]
fn an_answer_without_an_acknowledgement_settles_the_descriptor_too() {
    let mut world = World::new(Config::default());
    let worker = node_worker(&mut world, &[1]);
    for _ in 0..500 {
        world.accept(1);
        let (seq, _) = world.holds(worker, 0).unwrap();
        world.takes(worker, seq);
    }
    assert_eq!((world.open.len(), world.violations(worker)), (0, 0));
    // Had anything been left behind, it would get the acknowledgement of what comes next.
    let ticket = world.user_handle(worker);
    world.says(worker, NACK);
    assert_eq!(world.settled.get(&ticket), Some(&false));
    world.says(worker, ACK);
    assert_eq!(world.violations(worker), 1, "nothing is left that could be acknowledged");
}

#[test]
fn a_refused_descriptor_is_that_of_the_connection_behind_one_that_was_only_answered() {
    let mut world = World::new(Config::default());
    let worker = node_worker(&mut world, &[1]);
    world.accept(2);
    let ((first, _), (second, conn)) = (world.holds(worker, 0).unwrap(), world.holds(worker, 1).unwrap());
    world.takes(worker, first);
    world.let_go(worker, second);
    world.says(worker, NACK);
    assert_eq!(world.waiting.iter().copied().collect::<Vec<_>>(), [conn], "the second one is given back");
    assert_eq!(world.violations(worker), 0);
    let stats = world.primary.status(worker).unwrap().stats;
    assert_eq!((stats.taken, stats.returned, stats.in_flight), (1, 1, 0));
}

#[test]
fn a_listener_that_could_not_be_copied_is_answered_and_the_others_keep_their_acknowledgements() {
    let mut world = World::new(Config { scheduling: Scheduling::Shared, ..Config::default() });
    let worker = node_worker(&mut world, &[1, 2, 3]);
    let ids: Vec<ListenerId> = world.listeners.keys().copied().collect();
    let ticket = world.user_handle(worker);
    assert!(world.sent.is_empty(), "{:?}", world.sent);
    world.primary.listener_unsent(worker, ids[1]);
    world.act().unwrap();
    let errno = |world: &World, n: usize| {
        let (to, line) = &world.sent[n];
        assert_eq!(*to, worker);
        let answer: serde_json::Value = serde_json::from_str(line).unwrap();
        (answer["ack"].as_i64().unwrap(), answer["errno"].as_i64().unwrap())
    };
    assert_eq!((world.sent.len(), errno(&world, 0)), (1, (2, -24)));
    assert!(!world.listeners.contains_key(&ids[1]), "nobody uses it");
    world.says(worker, ACK);
    world.says(worker, NACK);
    assert_eq!((world.sent.len(), errno(&world, 1)), (2, (3, -24)), "the first arrived, and the third did not");
    assert_eq!(world.listeners.keys().copied().collect::<Vec<_>>(), [ids[0]]);
    world.says(worker, ACK);
    assert_eq!(world.settled.get(&ticket), Some(&true));
    assert_eq!(world.violations(worker), 0);
    world.says(worker, ACK);
    assert_eq!(world.violations(worker), 1);
    // It can ask again.
    world.happen(Input::Query { worker: 0, port: 2, fails: false }).unwrap();
    assert_eq!((world.sent.len(), world.listeners.len()), (2, 2), "bound anew and sent with its descriptor");
    // For a worker or listener that is gone there is nothing to do.
    world.primary.listener_unsent(worker, ids[1]);
    world.primary.listener_unsent(WorkerId(99), ids[0]);
    world.act().unwrap();
    assert_eq!(world.sent.len(), 2);
}

#[test]
fn a_wrong_answer_does_not_swallow_what_the_same_message_does() {
    let mut world = World::new(Config::default());
    let worker = node_worker(&mut world, &[1]);
    for ack in ["999999", "-1"] {
        world.sent.clear();
        let before = world.violations(worker);
        let line = format!(r#"{{"cmd":"NODE_CLUSTER","ack":{ack},"accepted":true,"act":"exitedAfterDisconnect","seq":7}}"#);
        world.says(worker, &line);
        assert_eq!(world.violations(worker), before + 1, "an answer to nothing, {ack}, is an offence");
        assert_eq!(world.primary.status(worker).unwrap().exited_after_disconnect, Some(true));
        assert_eq!(world.sent.len(), 1, "and the goodbye is answered: {:?}", world.sent);
        assert!(world.sent[0].1.contains(r#""ack":7"#), "{:?}", world.sent);
    }
}

#[test]
fn a_connection_that_found_the_channel_full_is_nothing_that_its_worker_did() {
    for troop in [true, false] {
        let mut world = World::new(Config::default());
        let worker = if troop { troop_worker(&mut world, &[1]) } else { node_worker(&mut world, &[1]) };
        world.accept(1);
        let (seq, conn) = world.holds(worker, 0).unwrap();
        world.happen(Input::Blocked { worker: 0, blocked: true }).unwrap();
        world.happen(Input::Undelivered { worker: 0, which: 0 }).unwrap();
        assert_eq!(world.waiting.iter().copied().collect::<Vec<_>>(), [conn]);
        let stats = world.primary.status(worker).unwrap().stats;
        assert_eq!((stats.handed, stats.returned, stats.in_flight), (0, 0, 0));
        // There is no pause: with room in the channel it is the worker's at once, under a new number.
        world.happen(Input::Blocked { worker: 0, blocked: false }).unwrap();
        let held = world.holds(worker, 0);
        assert!(held.is_some_and(|(again, c)| again != seq && c == conn), "{held:?}");
        assert!(world.waiting.is_empty());
        if !troop {
            // The acknowledgement of the first attempt is not waited for.
            world.says(worker, ACK);
            world.says(worker, ACK);
            assert_eq!(world.violations(worker), 1);
        }
        // While it is not blocked, a failure is the worker's, and it has a pause.
        world.happen(Input::Undelivered { worker: 0, which: 0 }).unwrap();
        assert_eq!(world.primary.status(worker).unwrap().stats.returned, 1);
        assert_eq!(world.waiting.len(), 1, "its turn comes later");
    }
}

#[test]
fn connections_behind_a_channel_that_the_primary_closed_move_only_when_the_process_has_ended() {
    let mut world = World::new(Config::default());
    let first = troop_worker(&mut world, &[1]);
    let second = troop_worker(&mut world, &[1]);
    world.accept(4);
    assert_eq!((world.workers[&first].holds.len(), world.workers[&second].holds.len()), (2, 2));
    world.happen(Input::ChannelClosed { worker: 0, by_worker: false }).unwrap();
    // Nor does a second report of the same end, or time, move them.
    world.happen(Input::ChannelClosed { worker: 0, by_worker: true }).unwrap();
    world.happen(Input::Pass { ms: 5000 }).unwrap();
    assert_eq!((world.workers[&first].holds.len(), world.workers[&second].holds.len()), (2, 2));
    assert!(!world.primary.status(first).unwrap().connected);
    world.happen(Input::Batch { worker: 1, taken: 2, returned: 0 }).unwrap();
    world.accept(1);
    assert_eq!(world.workers[&second].holds.len(), 1, "new ones go to the other");
    world.happen(Input::Exit { worker: 0 }).unwrap();
    assert_eq!((world.workers[&second].holds.len(), world.open.len()), (3, 3));
    world.happen(Input::Batch { worker: 0, taken: 3, returned: 0 }).unwrap();
    world.end().unwrap();
}

#[test]
fn a_process_that_stays_behind_a_channel_that_the_primary_closed_is_killed_in_the_end() {
    let mut world = World::new(Config::default());
    let worker = troop_worker(&mut world, &[1]);
    world.accept(1);
    world.happen(Input::ChannelClosed { worker: 0, by_worker: false }).unwrap();
    world.happen(Input::Pass { ms: 31_000 }).unwrap();
    assert!(world.primary.is_cut_off(worker), "somebody waits for an answer");
}
