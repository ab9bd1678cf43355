//! Node 26 resets connections whose request it has not read when it is told to disconnect: it is told
//! when it has read them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use simulation::{Input, Simulation};
use troop_core::WorkerId;
use troop_core::primary::Config;

fn serving(scheduling: &str) -> (Simulation, WorkerId) {
    let config = Config { scheduling: scheduling.parse().unwrap(), ..Config::default() };
    let mut simulation = Simulation::new(config);
    simulation.happen(Input::Fork { troop: false }).unwrap();
    simulation.happen(Input::Query { worker: 0, port: 1, fails: false }).unwrap();
    simulation.happen(Input::Listening { worker: 0, port: 1 }).unwrap();
    let worker = *simulation.workers.keys().next().unwrap();
    (simulation, worker)
}

/// A worker that takes a connection now.
fn with_a_connection() -> (Simulation, WorkerId) {
    let (mut simulation, worker) = serving("round-robin");
    take(&mut simulation, worker);
    (simulation, worker)
}

fn take(simulation: &mut Simulation, worker: WorkerId) {
    let listener = *simulation.listeners.keys().next().unwrap();
    let conn = troop_core::ConnId(1);
    simulation.open.insert(conn);
    simulation.waiting.insert(conn);
    let about = troop_core::policy::Connection::new(None, None);
    simulation.primary.accepted(simulation.now, listener, conn, about);
    simulation.act().unwrap();
    let (seq, _) = simulation.primary.in_flight(worker).next().unwrap();
    simulation
        .says(worker, &format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":true,"seq":1}}"#));
}

fn disconnect(simulation: &mut Simulation) {
    simulation.sent.clear();
    simulation.happen(Input::Disconnect { worker: 0, keep: true }).unwrap();
    pass(simulation, 1);
}

fn pass(simulation: &mut Simulation, ms: u64) {
    simulation.happen(Input::Pass { ms }).unwrap();
}

/// Numbers of the questions so far.
fn questions(simulation: &Simulation) -> Vec<u64> {
    let lines = simulation
        .sent
        .iter()
        .map(|(_, line)| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let probes = lines.filter(|line| line["msg"]["key"] == "troop:probe");
    probes.map(|line| line["msg"]["seq"].as_u64().unwrap()).collect()
}

fn answer(simulation: &mut Simulation, worker: WorkerId, seq: u64) {
    simulation.says(worker, r#"{"cmd":"NODE_HANDLE_ACK"}"#);
    simulation
        .says(worker, &format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":false,"seq":5}}"#));
    pass(simulation, 0);
}

fn is_told(simulation: &Simulation) -> bool {
    simulation.sent.iter().any(|(_, line)| line.contains(r#""act":"disconnect""#))
}

#[test]
fn a_connection_that_was_handed_over_has_its_time_and_then_the_worker_is_asked() {
    let (mut simulation, worker) = with_a_connection();
    disconnect(&mut simulation);
    pass(&mut simulation, 90);
    assert!(
        questions(&simulation).is_empty() && !is_told(&simulation),
        "the request may not have come"
    );
    pass(&mut simulation, 20);
    let [seq] = questions(&simulation)[..] else { panic!("{:?}", simulation.sent) };
    pass(&mut simulation, 500);
    assert!(!is_told(&simulation), "its event loop has not turned");
    answer(&mut simulation, worker, seq);
    assert!(is_told(&simulation));
    assert_eq!(simulation.violations(worker), 0);
}

#[test]
fn a_worker_that_accepts_by_itself_is_asked_whether_it_has() {
    let (mut simulation, worker) = serving("steered");
    pass(&mut simulation, 1_000);
    disconnect(&mut simulation);
    let [accepts] = questions(&simulation)[..] else { panic!("{:?}", simulation.sent) };
    pass(&mut simulation, 500);
    assert!(!is_told(&simulation), "it may not have accepted yet");
    answer(&mut simulation, worker, accepts);
    pass(&mut simulation, 90);
    assert_eq!(questions(&simulation).len(), 1, "requests may not have come");
    pass(&mut simulation, 20);
    let [_, reads] = questions(&simulation)[..] else { panic!("{:?}", simulation.sent) };
    assert!(!is_told(&simulation), "it may not have read them");
    answer(&mut simulation, worker, reads);
    assert!(is_told(&simulation));
    assert_eq!(simulation.violations(worker), 0);
}

#[test]
fn one_that_had_nothing_to_read_lately_is_told_at_once() {
    let (mut simulation, _) = serving("round-robin");
    disconnect(&mut simulation);
    assert!(is_told(&simulation));

    let (mut simulation, _) = with_a_connection();
    pass(&mut simulation, 200);
    simulation.primary.tick(simulation.now);
    disconnect(&mut simulation);
    assert!(is_told(&simulation) && questions(&simulation).is_empty());
}

#[test]
fn one_that_does_not_answer_is_told_after_two_seconds() {
    for scheduling in ["round-robin", "steered"] {
        let (mut simulation, worker) = serving(scheduling);
        if scheduling == "round-robin" {
            take(&mut simulation, worker);
        }
        disconnect(&mut simulation);
        pass(&mut simulation, 1_900);
        assert!(!is_told(&simulation), "{scheduling}");
        pass(&mut simulation, 200);
        assert!(is_told(&simulation), "{scheduling}");
        // However late the answer is.
        let [seq] = questions(&simulation)[..] else { panic!("{:?}", simulation.sent) };
        answer(&mut simulation, worker, seq);
        assert_eq!(simulation.violations(worker), 0, "{scheduling}");
    }
}

/// A shell without a descriptor for the question, and a worker that could not receive it.
#[test]
fn a_question_that_does_not_reach_it_counts_as_answered() {
    for unsent in [true, false] {
        let (mut simulation, worker) = with_a_connection();
        disconnect(&mut simulation);
        pass(&mut simulation, 110);
        assert_eq!(questions(&simulation).len(), 1);
        if unsent {
            simulation.primary.probe_unsent(simulation.now, worker);
        } else {
            simulation.says(worker, r#"{"cmd":"NODE_HANDLE_NACK"}"#);
        }
        pass(&mut simulation, 0);
        assert!(is_told(&simulation), "{unsent}");
        assert_eq!(simulation.violations(worker), 0);
    }
}

#[test]
fn the_answer_to_an_older_probe_is_not_taken_for_that_to_the_question() {
    let (mut simulation, worker) = serving("round-robin");
    simulation.sent.clear();
    pass(&mut simulation, 15_000);
    let [probe] = questions(&simulation)[..] else { panic!("{:?}", simulation.sent) };
    take(&mut simulation, worker);
    disconnect(&mut simulation);
    pass(&mut simulation, 110);
    assert!(questions(&simulation).is_empty(), "one at a time");
    answer(&mut simulation, worker, probe);
    pass(&mut simulation, 60);
    assert!(!is_told(&simulation));
    let [seq] = questions(&simulation)[..] else { panic!("{:?}", simulation.sent) };
    answer(&mut simulation, worker, seq);
    assert!(is_told(&simulation));
    assert_eq!(simulation.violations(worker), 0);
}

/// The worker's shard of its only listener.
fn shard(simulation: &Simulation, worker: WorkerId) -> Option<usize> {
    let listener = *simulation.listeners.keys().next().unwrap();
    (0..8).find(|shard| simulation.primary.holders(listener, *shard).contains(&worker))
}

/// Or new connections would reach it until it closes.
#[test]
fn nobody_gets_the_shard_of_a_worker_that_leaves_until_it_has_closed() {
    let (mut simulation, first) = serving("steered");
    let start = |simulation: &mut Simulation, number: usize| {
        simulation.happen(Input::Fork { troop: false }).unwrap();
        simulation.happen(Input::Query { worker: number, port: 1, fails: false }).unwrap();
        simulation.happen(Input::Listening { worker: number, port: 1 }).unwrap();
        let worker = *simulation.workers.keys().last().unwrap();
        shard(simulation, worker).unwrap()
    };
    let before = shard(&simulation, first).unwrap();
    let beside = start(&mut simulation, 1);
    simulation.happen(Input::Disconnect { worker: 0, keep: true }).unwrap();
    let meanwhile = start(&mut simulation, 2);
    assert!(before != beside && before != meanwhile && beside != meanwhile);
    simulation.happen(Input::Exit { worker: 0 }).unwrap();
    assert_eq!(start(&mut simulation, 2), before, "it is vacant now");
}
