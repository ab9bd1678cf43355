//! Whatever happens in whatever order, every accepted connection is in exactly one place, and is
//! released exactly once.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use std::time::Duration;

use proptest::prelude::*;
use simulation::{Input, Simulation, config, input};
use troop_core::policy::Scheduling;
use troop_core::primary::Config;
use troop_core::{ListenerId, WorkerId};

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(1500)
    })]

    #[test]
    fn every_connection_is_in_one_place_and_released_once(inputs in prop::collection::vec(input(), 0..150)) {
        let mut simulation = Simulation::new(config());
        for input in inputs {
            simulation.happen(input)?;
        }
        simulation.end()?;
    }

    /// The same where a shell reports several inputs before it carries out their actions.
    #[test]
    fn every_connection_is_in_one_place_however_late_actions_are_carried_out(
        inputs in prop::collection::vec((input(), any::<bool>()), 0..150),
    ) {
        let mut simulation = Simulation::new(config());
        simulation.is_late = true;
        for (input, acts) in inputs {
            simulation.happen_late(input)?;
            if acts {
                simulation.act()?;
            }
        }
        simulation.act()?;
        simulation.end()?;
    }

    /// Nobody who is free is left without work while there is some, once all pauses are over.
    #[test]
    fn no_connection_waits_beside_a_free_worker(inputs in prop::collection::vec(input(), 0..150)) {
        let mut simulation = Simulation::new(Config { hang_timeout: None, ..config() });
        for input in inputs {
            simulation.happen(input)?;
        }
        simulation.calm = true;
        // Everybody takes what it has, reads its channel, and has time.
        for id in simulation.workers.keys().copied().collect::<Vec<_>>() {
            simulation.of_worker(id, Input::Blocked { worker: 0, blocked: false });
            simulation.of_worker(id, Input::Hold { worker: 0, held: false });
            simulation.act()?;
        }
        for _ in 0..20 {
            for id in simulation.workers.keys().copied().collect::<Vec<_>>() {
                simulation.of_worker(id, Input::Batch { worker: 0, taken: 255, returned: 0 });
                simulation.act()?;
            }
            simulation.happen(Input::Pass { ms: 600 })?;
        }
        // A new worker that asks for every listener gets all that waits.
        if simulation.workers.len() < 8 {
            simulation.happen(Input::Fork { troop: true })?;
            let newest = simulation.workers.len() - 1;
            for port in 1..8 {
                simulation.happen(Input::Query { worker: newest, port, fails: false })?;
                simulation.happen(Input::Listening { worker: newest, port })?;
            }
            let id = simulation.worker(newest).unwrap();
            for _ in 0..20 {
                simulation.of_worker(id, Input::Batch { worker: 0, taken: 255, returned: 0 });
                simulation.act()?;
                simulation.happen(Input::Pass { ms: 100 })?;
            }
            prop_assert!(simulation.waiting.is_empty(), "{:?} still wait", simulation.waiting);
        }
    }
}

// ---- single promises ----

#[test]
fn a_worker_without_room_for_a_listener_may_give_back_what_it_has_of_it() {
    let mut simulation = Simulation::new(config());
    simulation.is_late = true;
    let inputs = [
        Input::Join { troop: false, port: 6 },
        Input::Accept { listener: 1 },
        Input::Fork { troop: false },
        Input::Query { worker: 0, port: 1, fails: false },
    ];
    inputs.into_iter().for_each(|input| simulation.happen_late(input).unwrap());
    simulation.act().unwrap();
    let inputs = [
        Input::Answer { worker: 2, which: 0, accepted: true },
        Input::Join { troop: false, port: 6 },
        // It has no descriptor left for its socket of port 1.
        Input::Acknowledge { worker: 3, arrived: false },
        Input::Disconnect { worker: 3, keep: false },
        Input::Exit { worker: 1 },
        Input::Move { worker: 0, which: 0 },
    ];
    inputs.into_iter().for_each(|input| simulation.happen_late(input).unwrap());
    simulation.act().unwrap();
    simulation.end().unwrap();
}

fn troop_worker(simulation: &mut Simulation, ports: &[u16]) -> WorkerId {
    simulation.happen(Input::Fork { troop: true }).unwrap();
    let n = simulation.workers.len() - 1;
    for port in ports {
        simulation.happen(Input::Query { worker: n, port: *port, fails: false }).unwrap();
    }
    simulation.worker(n).unwrap()
}

#[test]
fn a_listener_whose_worker_leaves_before_it_is_bound_does_not_stay_open() {
    let mut simulation = Simulation::new(config());
    simulation.happen(Input::Fork { troop: false }).unwrap();
    let worker = simulation.worker(0).unwrap();
    // The second one is in the way of the first, and nothing is bound before the worker has left.
    for _ in 0..2 {
        simulation.of_worker(worker, Input::Query { worker: 0, port: 4, fails: false });
    }
    simulation.close_channel(worker, false);
    simulation.act().unwrap();
    simulation.end().unwrap();
}

#[test]
fn an_acknowledgement_on_one_listener_frees_the_worker_for_its_others_at_once() {
    let mut simulation = Simulation::new(Config { troop_window: 2, ..Config::default() });
    let worker = troop_worker(&mut simulation, &[1, 2]);
    for listener in [0, 0, 1] {
        simulation.happen(Input::Accept { listener }).unwrap();
    }
    assert_eq!(
        (simulation.workers[&worker].holds.len(), simulation.waiting.len()),
        (2, 1),
        "the worker's window is full"
    );
    simulation.happen(Input::Batch { worker: 0, taken: 1, returned: 0 }).unwrap();
    assert_eq!(
        simulation.waiting.len(),
        0,
        "the worker has room, so the connection of the other listener must not wait for a tick"
    );
}

#[test]
fn policies_by_load_skip_an_unresponsive_worker_sooner() {
    for (scheduling, patience) in [
        (Scheduling::RoundRobin, 50),
        (Scheduling::LeastConnections, 10),
        (Scheduling::PowerOfTwo, 10),
    ] {
        let mut simulation = Simulation::new(Config { scheduling, ..Config::default() });
        let slow = troop_worker(&mut simulation, &[1]);
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
        simulation.now = simulation.now + Duration::from_millis(patience - 1);
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
        assert_eq!(simulation.workers[&slow].holds.len(), 2, "patience is not over");
        simulation.now = simulation.now + Duration::from_millis(1);
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
        assert_eq!(
            (simulation.workers[&slow].holds.len(), simulation.waiting.len()),
            (2, 1),
            "nobody else is there, so it waits"
        );
        let quick = troop_worker(&mut simulation, &[1]);
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
        assert_eq!(
            (simulation.workers[&slow].holds.len(), simulation.workers[&quick].holds.len()),
            (2, 2)
        );
        assert!(simulation.waiting.is_empty());
    }
}

#[test]
fn a_list_with_one_wrong_number_still_answers_the_right_ones() {
    let mut simulation = Simulation::new(Config::default());
    let worker = troop_worker(&mut simulation, &[1]);
    for _ in 0..3 {
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
    }
    let seqs: Vec<u64> = simulation.workers[&worker].holds.keys().copied().collect();
    let line = format!(
        r#"{{"cmd":"NODE_TROOP","act":"taken","taken":[999999,{},{},{}]}}"#,
        seqs[0], seqs[1], seqs[2]
    );
    simulation.say(worker, &line);
    simulation.act().unwrap();
    assert!(
        simulation.open.is_empty(),
        "three connections were taken: {:?} are still held",
        simulation.open
    );
}

#[test]
fn connections_of_a_worker_that_leaves_by_itself_go_to_its_successor() {
    let mut simulation = Simulation::new(Config::default());
    let first = troop_worker(&mut simulation, &[1]);
    let second = troop_worker(&mut simulation, &[1]);
    for _ in 0..4 {
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
    }
    assert_eq!(
        (simulation.workers[&first].holds.len(), simulation.workers[&second].holds.len()),
        (2, 2)
    );
    simulation.happen(Input::Goodbye { worker: 0 }).unwrap();
    simulation.happen(Input::Exit { worker: 0 }).unwrap();
    assert!(!simulation.workers.contains_key(&first));
    assert_eq!((simulation.workers[&second].holds.len(), simulation.open.len()), (4, 4));
}

#[test]
fn a_connection_that_killed_eight_workers_is_not_dispatched_to_a_ninth() {
    let mut simulation = Simulation::new(Config::default());
    troop_worker(&mut simulation, &[1]);
    simulation.happen(Input::Accept { listener: 0 }).unwrap();
    let mut deaths = 0;
    while !simulation.open.is_empty() {
        simulation.happen(Input::Exit { worker: 0 }).unwrap();
        deaths += 1;
        assert!(deaths <= 8, "it goes on killing workers");
        troop_worker(&mut simulation, &[1]);
    }
    assert_eq!(deaths, 8);
}

#[test]
fn time_in_which_the_primary_was_stopped_makes_no_worker_hung() {
    let mut simulation = Simulation::new(Config::default());
    let worker = troop_worker(&mut simulation, &[1]);
    simulation.happen(Input::Accept { listener: 0 }).unwrap();
    simulation.now = simulation.now + Duration::from_secs(600);
    simulation.primary.tick(simulation.now);
    simulation.act().unwrap();
    assert!(!simulation.primary.is_cut_off(worker));
    simulation.happen(Input::Pass { ms: 31_000 }).unwrap();
    assert!(simulation.primary.is_cut_off(worker), "half a minute later it does");
}

fn node_worker(simulation: &mut Simulation, ports: &[u16]) -> WorkerId {
    simulation.happen(Input::Fork { troop: false }).unwrap();
    let n = simulation.workers.len() - 1;
    for port in ports {
        simulation.happen(Input::Query { worker: n, port: *port, fails: false }).unwrap();
    }
    simulation.worker(n).unwrap()
}

const ACK: &str = r#"{"cmd":"NODE_HANDLE_ACK"}"#;
const NACK: &str = r#"{"cmd":"NODE_HANDLE_NACK"}"#;

impl Simulation {
    fn accept(&mut self, times: usize) {
        for _ in 0..times {
            self.happen(Input::Accept { listener: 0 }).unwrap();
        }
    }

    /// The worker says that it took this one, and nothing of the descriptor.
    fn takes(&mut self, worker: WorkerId, seq: u64) {
        self.say(
            worker,
            &format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":true,"seq":1}}"#),
        );
        self.act().unwrap();
    }

    fn user_handle(&mut self, worker: WorkerId) -> u64 {
        self.of_worker(worker, Input::UserHandle { worker: 0 });
        self.act().unwrap();
        self.next_ticket
    }
}

#[test]
fn a_reply_without_an_acknowledgement_settles_the_descriptor_too() {
    let mut simulation = Simulation::new(Config::default());
    let worker = node_worker(&mut simulation, &[1]);
    for _ in 0..500 {
        simulation.accept(1);
        let (seq, _) = simulation.holds(worker, 0).unwrap();
        simulation.takes(worker, seq);
    }
    assert_eq!((simulation.open.len(), simulation.violations(worker)), (0, 0));
    // Had anything been left behind, it would get the acknowledgement of what comes next.
    let ticket = simulation.user_handle(worker);
    simulation.says(worker, NACK);
    assert_eq!(simulation.settled.get(&ticket), Some(&false));
    simulation.says(worker, ACK);
    assert_eq!(simulation.violations(worker), 1, "nothing is left that could be acknowledged");
}

#[test]
fn a_refused_descriptor_is_that_of_the_connection_behind_one_that_was_only_answered() {
    let mut simulation = Simulation::new(Config::default());
    let worker = node_worker(&mut simulation, &[1]);
    simulation.accept(2);
    let ((first, _), (second, conn)) =
        (simulation.holds(worker, 0).unwrap(), simulation.holds(worker, 1).unwrap());
    simulation.takes(worker, first);
    simulation.let_go(worker, second);
    simulation.says(worker, NACK);
    assert_eq!(
        simulation.waiting.iter().copied().collect::<Vec<_>>(),
        [conn],
        "the second one is given back"
    );
    assert_eq!(simulation.violations(worker), 0);
    let stats = simulation.primary.status(worker).unwrap().stats;
    assert_eq!((stats.taken, stats.returned, stats.in_flight), (1, 1, 0));
}

#[test]
fn a_listener_that_could_not_be_copied_is_answered_and_the_others_keep_their_acknowledgements() {
    let mut simulation =
        Simulation::new(Config { scheduling: Scheduling::Shared, ..Config::default() });
    let worker = node_worker(&mut simulation, &[1, 2, 3]);
    let ids: Vec<ListenerId> = simulation.listeners.keys().copied().collect();
    let ticket = simulation.user_handle(worker);
    assert!(simulation.sent.is_empty(), "{:?}", simulation.sent);
    simulation.primary.listener_unsent(worker, ids[1]);
    simulation.act().unwrap();
    let errno = |simulation: &Simulation, n: usize| {
        let (to, line) = &simulation.sent[n];
        assert_eq!(*to, worker);
        let answer: serde_json::Value = serde_json::from_str(line).unwrap();
        (answer["ack"].as_i64().unwrap(), answer["errno"].as_i64().unwrap())
    };
    assert_eq!((simulation.sent.len(), errno(&simulation, 0)), (1, (2, -24)));
    assert!(!simulation.listeners.contains_key(&ids[1]), "nobody uses it");
    simulation.says(worker, ACK);
    simulation.says(worker, NACK);
    assert_eq!(
        (simulation.sent.len(), errno(&simulation, 1)),
        (2, (3, -24)),
        "the first arrived, and the third did not"
    );
    assert_eq!(simulation.listeners.keys().copied().collect::<Vec<_>>(), [ids[0]]);
    simulation.says(worker, ACK);
    assert_eq!(simulation.settled.get(&ticket), Some(&true));
    assert_eq!(simulation.violations(worker), 0);
    simulation.says(worker, ACK);
    assert_eq!(simulation.violations(worker), 1);
    // It can ask again.
    simulation.happen(Input::Query { worker: 0, port: 2, fails: false }).unwrap();
    assert_eq!(
        (simulation.sent.len(), simulation.listeners.len()),
        (2, 2),
        "bound anew and sent with its descriptor"
    );
    // For a worker or listener that is gone there is nothing to do.
    simulation.primary.listener_unsent(worker, ids[1]);
    simulation.primary.listener_unsent(WorkerId(99), ids[0]);
    simulation.act().unwrap();
    assert_eq!(simulation.sent.len(), 2);
}

#[test]
fn an_invalid_reply_does_not_suppress_the_act_of_the_same_message() {
    let mut simulation = Simulation::new(Config::default());
    let worker = node_worker(&mut simulation, &[1]);
    for ack in ["999999", "-1"] {
        simulation.sent.clear();
        let before = simulation.violations(worker);
        let line = format!(
            r#"{{"cmd":"NODE_CLUSTER","ack":{ack},"accepted":true,"act":"exitedAfterDisconnect","seq":7}}"#
        );
        simulation.says(worker, &line);
        assert_eq!(
            simulation.violations(worker),
            before + 1,
            "an answer to nothing, {ack}, is an offence"
        );
        assert_eq!(simulation.primary.status(worker).unwrap().exited_after_disconnect, Some(true));
        assert_eq!(simulation.sent.len(), 1, "and the goodbye is answered: {:?}", simulation.sent);
        assert!(simulation.sent[0].1.contains(r#""ack":7"#), "{:?}", simulation.sent);
    }
}

#[test]
fn a_full_channel_does_not_count_against_its_worker() {
    for troop in [true, false] {
        let mut simulation = Simulation::new(Config::default());
        let worker = if troop {
            troop_worker(&mut simulation, &[1])
        } else {
            node_worker(&mut simulation, &[1])
        };
        simulation.accept(1);
        let (seq, conn) = simulation.holds(worker, 0).unwrap();
        simulation.happen(Input::Blocked { worker: 0, blocked: true }).unwrap();
        simulation.happen(Input::Undelivered { worker: 0, which: 0 }).unwrap();
        assert_eq!(simulation.waiting.iter().copied().collect::<Vec<_>>(), [conn]);
        let stats = simulation.primary.status(worker).unwrap().stats;
        assert_eq!((stats.handed, stats.returned, stats.in_flight), (0, 0, 0));
        // There is no pause: with room in the channel it is the worker's at once, under a new
        // number.
        simulation.happen(Input::Blocked { worker: 0, blocked: false }).unwrap();
        let held = simulation.holds(worker, 0);
        assert!(held.is_some_and(|(again, c)| again != seq && c == conn), "{held:?}");
        assert!(simulation.waiting.is_empty());
        if !troop {
            // The acknowledgement of the first attempt is not waited for.
            simulation.says(worker, ACK);
            simulation.says(worker, ACK);
            assert_eq!(simulation.violations(worker), 1);
        }
        // While it is not blocked, a failure is the worker's, and it has a pause.
        simulation.happen(Input::Undelivered { worker: 0, which: 0 }).unwrap();
        assert_eq!(simulation.primary.status(worker).unwrap().stats.returned, 1);
        assert_eq!(simulation.waiting.len(), 1, "its turn comes later");
    }
}

#[test]
fn connections_behind_a_channel_that_the_primary_closed_move_only_when_the_process_has_ended() {
    let mut simulation = Simulation::new(Config::default());
    let first = troop_worker(&mut simulation, &[1]);
    let second = troop_worker(&mut simulation, &[1]);
    simulation.accept(4);
    assert_eq!(
        (simulation.workers[&first].holds.len(), simulation.workers[&second].holds.len()),
        (2, 2)
    );
    simulation.happen(Input::ChannelClosed { worker: 0, by_worker: false }).unwrap();
    // Nor does a second report of the same end, or time, move them.
    simulation.happen(Input::ChannelClosed { worker: 0, by_worker: true }).unwrap();
    simulation.happen(Input::Pass { ms: 5000 }).unwrap();
    assert_eq!(
        (simulation.workers[&first].holds.len(), simulation.workers[&second].holds.len()),
        (2, 2)
    );
    assert!(!simulation.primary.status(first).unwrap().connected);
    simulation.happen(Input::Batch { worker: 1, taken: 2, returned: 0 }).unwrap();
    simulation.accept(1);
    assert_eq!(simulation.workers[&second].holds.len(), 1, "new ones go to the other");
    simulation.happen(Input::Exit { worker: 0 }).unwrap();
    assert_eq!((simulation.workers[&second].holds.len(), simulation.open.len()), (3, 3));
    simulation.happen(Input::Batch { worker: 0, taken: 3, returned: 0 }).unwrap();
    simulation.end().unwrap();
}

#[test]
fn a_process_that_stays_behind_a_channel_that_the_primary_closed_is_killed_in_the_end() {
    let mut simulation = Simulation::new(Config::default());
    let worker = troop_worker(&mut simulation, &[1]);
    simulation.accept(1);
    simulation.happen(Input::ChannelClosed { worker: 0, by_worker: false }).unwrap();
    simulation.happen(Input::Pass { ms: 31_000 }).unwrap();
    assert!(simulation.primary.is_cut_off(worker), "somebody waits for an answer");
}
