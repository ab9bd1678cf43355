//! A worker that listens is asked for a sign of life when it has been silent, and ended when it
//! gives none.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use std::time::Duration;

use simulation::{Input, Simulation};
use troop_core::WorkerId;
use troop_core::primary::Config;

const ACK: &str = r#"{"cmd":"NODE_HANDLE_ACK"}"#;
const NACK: &str = r#"{"cmd":"NODE_HANDLE_NACK"}"#;

fn listening(config: Config) -> (Simulation, WorkerId) {
    let mut simulation = Simulation::new(config);
    simulation.happen(Input::Fork { troop: false }).unwrap();
    simulation.happen(Input::Query { worker: 0, port: 1, fails: false }).unwrap();
    let worker = simulation.worker(0).unwrap();
    (simulation, worker)
}

fn listens(simulation: &mut Simulation) {
    simulation.happen(Input::Listening { worker: 0, port: 1 }).unwrap();
    simulation.sent.clear();
}

fn pass(simulation: &mut Simulation, ms: u64) {
    for _ in 0..ms / 100 {
        simulation.happen(Input::Pass { ms: 100 }).unwrap();
    }
}

/// The numbers of the connections to nothing that it was handed.
fn asked(simulation: &Simulation) -> Vec<u64> {
    let lines = simulation
        .sent
        .iter()
        .map(|(_, line)| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line["msg"]["key"] == "troop:probe")
        .map(|line| line["msg"]["seq"].as_u64().unwrap())
        .collect()
}

fn refusal(seq: u64) -> String {
    format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":false,"seq":5}}"#)
}

#[test]
fn a_worker_without_a_sign_of_life_is_ended_after_the_timeout() {
    let (mut simulation, worker) = listening(Config::default());
    listens(&mut simulation);
    simulation.primary.heard(simulation.now, worker);
    pass(&mut simulation, 9_900);
    assert!(asked(&simulation).is_empty());
    pass(&mut simulation, 200);
    assert_eq!(asked(&simulation).len(), 1);
    pass(&mut simulation, 29_700);
    assert!(!simulation.primary.is_cut_off(worker));
    assert_eq!(asked(&simulation).len(), 1, "once is enough");
    pass(&mut simulation, 400);
    assert!(simulation.primary.is_cut_off(worker));
}

#[test]
fn every_message_of_a_worker_is_a_sign_of_life() {
    for answers in [
        vec!["ack", "refusal"],
        vec!["refusal"],
        vec!["refusal", "late ack"],
        vec!["nack"],
        vec!["heard"],
        vec!["unasked"],
    ] {
        let (mut simulation, worker) = listening(Config::default());
        listens(&mut simulation);
        for round in 0..10 {
            simulation.sent.clear();
            pass(&mut simulation, 25_000);
            let [.., seq] = asked(&simulation)[..] else {
                panic!("{answers:?}, round {round}: it was not asked")
            };
            for answer in &answers {
                match *answer {
                    "ack" => simulation.says(worker, ACK),
                    "nack" => simulation.says(worker, NACK),
                    "refusal" => simulation.says(worker, &refusal(seq)),
                    "heard" => simulation.primary.heard(simulation.now, worker),
                    "unasked" => simulation.primary.probe_unsent(simulation.now, worker),
                    _ => {}
                }
                simulation.act().unwrap();
            }
            if answers == ["heard"] {
                break;
            }
        }
        pass(&mut simulation, 29_000);
        assert!(!simulation.primary.is_cut_off(worker), "{answers:?}");
        assert_eq!(simulation.violations(worker), 0, "{answers:?}");
    }
}

#[test]
fn a_refusal_counts_once() {
    let (mut simulation, worker) = listening(Config::default());
    listens(&mut simulation);
    pass(&mut simulation, 11_000);
    let seq = asked(&simulation)[0];
    simulation.says(worker, &refusal(seq));
    assert_eq!(simulation.violations(worker), 0);
    simulation.says(worker, &refusal(seq));
    assert_eq!(simulation.violations(worker), 1);
}

#[test]
fn workers_that_start_drain_or_do_not_serve_are_not_probed() {
    let (mut simulation, worker) = listening(Config::default());
    pass(&mut simulation, 60_000);
    assert!(asked(&simulation).is_empty(), "it does not listen yet");
    listens(&mut simulation);
    simulation.primary.disconnect(worker, true, None);
    simulation.act().unwrap();
    pass(&mut simulation, 60_000);
    assert!(asked(&simulation).is_empty(), "it leaves");

    let (mut simulation, worker) = listening(Config { hang_timeout: None, ..Config::default() });
    listens(&mut simulation);
    pass(&mut simulation, 60_000);
    assert!(asked(&simulation).is_empty());
    assert!(!simulation.primary.is_cut_off(worker));
}

#[test]
fn time_in_which_the_primary_was_stopped_is_not_counted_against_workers() {
    let (mut simulation, worker) =
        listening(Config { hang_timeout: Some(Duration::from_secs(3)), ..Config::default() });
    listens(&mut simulation);
    pass(&mut simulation, 2_000);
    assert_eq!(asked(&simulation).len(), 1);
    simulation.now = simulation.now + Duration::from_secs(50);
    simulation.primary.tick(simulation.now);
    simulation.act().unwrap();
    assert!(!simulation.primary.is_cut_off(worker), "nobody could read its answer");
    pass(&mut simulation, 3_200);
    assert!(simulation.primary.is_cut_off(worker));
}

/// What the shell that was killed had sent is not known: a worker may acknowledge any of it.
#[test]
fn after_a_recovery_what_a_worker_was_sent_before_is_no_violation_until_it_has_answered_a_probe() {
    let (mut simulation, worker) = listening(Config { hang_timeout: None, ..Config::default() });
    listens(&mut simulation);
    simulation.primary.recovered(simulation.now, |_| false, |_| false);
    simulation.act().unwrap();
    let [seq] = asked(&simulation)[..] else { panic!("it is asked once") };
    assert!(seq >= 1 << 32, "numbers are not used again: {seq}");
    for old in [0, 7, 4711] {
        simulation.says(worker, ACK);
        simulation.says(
            worker,
            &format!(r#"{{"cmd":"NODE_CLUSTER","ack":{old},"accepted":true,"seq":5}}"#),
        );
        simulation.says(worker, &refusal(old));
    }
    simulation.says(worker, NACK);
    assert_eq!(simulation.violations(worker), 0);
    simulation.says(worker, &refusal(seq));
    assert_eq!(simulation.violations(worker), 0);
    // From now on all that it acknowledges is known.
    simulation.says(worker, ACK);
    assert_eq!(simulation.violations(worker), 1);
    simulation.says(worker, &refusal(seq + 1));
    assert_eq!(simulation.violations(worker), 2);
}

#[test]
fn after_a_recovery_connections_that_waited_and_are_still_there_are_served_and_no_others() {
    let (mut simulation, worker) = listening(Config { hang_timeout: None, ..Config::default() });
    listens(&mut simulation);
    simulation.primary.set_blocked(simulation.now, worker, true);
    for _ in 0..3 {
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
    }
    let waiting: Vec<_> = simulation.primary.waiting().collect();
    assert_eq!(waiting.len(), 3);
    simulation.primary.recovered(simulation.now, |conn| conn == waiting[1], |_| false);
    for lost in [waiting[0], waiting[2]] {
        simulation.open.remove(&lost);
        simulation.waiting.remove(&lost);
    }
    simulation.act().unwrap();
    assert!(simulation.workers[&worker].holds.is_empty(), "it is to answer the probe first");
    let [seq] = asked(&simulation)[..] else { panic!("it is asked once") };
    simulation.says(worker, NACK);
    simulation.says(worker, &refusal(seq));
    let served: Vec<_> = simulation.workers[&worker].holds.values().copied().collect();
    assert_eq!(served, [waiting[1]]);
}
