//! Connections that a worker which is to leave gives back between two requests.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use simulation::{Input, Simulation};
use troop_core::policy::Connection;
use troop_core::primary::Config;
use troop_core::{ConnId, ListenerId, Violation, WorkerId};

/// A primary with this many troop workers, or Node workers, on one listener.
fn serving(scheduling: &str, troop: &[bool]) -> (Simulation, Vec<WorkerId>, ListenerId, String) {
    let config =
        Config { scheduling: scheduling.parse().unwrap(), pending_limit: 4, ..Config::default() };
    let mut simulation = Simulation::new(config);
    for (number, troop) in troop.iter().enumerate() {
        simulation.happen(Input::Fork { troop: *troop }).unwrap();
        simulation.happen(Input::Query { worker: number, port: 9, fails: false }).unwrap();
        simulation.happen(Input::Listening { worker: number, port: 9 }).unwrap();
    }
    let workers = simulation.workers.keys().copied().collect();
    let listener = *simulation.listeners.keys().next().unwrap();
    let key = simulation.primary.listener_key(listener).unwrap().to_owned();
    (simulation, workers, listener, key)
}

fn is_told_to_leave(simulation: &mut Simulation, number: usize) -> String {
    simulation.sent.clear();
    simulation.happen(Input::Disconnect { worker: number, keep: true }).unwrap();
    simulation.happen(Input::Pass { ms: 500 }).unwrap();
    let line = simulation.sent.iter().map(|(_, line)| line).find(|l| l.contains("disconnect"));
    line.unwrap().clone()
}

fn give_back(simulation: &mut Simulation, worker: WorkerId, listener: ListenerId, conn: u32) {
    let conn = ConnId(conn);
    simulation.open.insert(conn);
    simulation.waiting.insert(conn);
    simulation.primary.moved(worker);
    simulation.primary.accepted(simulation.now, listener, conn, Connection::new(None, None));
    simulation.act().unwrap();
}

#[test]
fn a_connection_goes_to_a_worker_that_stays() {
    let (mut simulation, workers, listener, key) = serving("round-robin", &[true, true, true]);
    is_told_to_leave(&mut simulation, 0);
    is_told_to_leave(&mut simulation, 1);
    for conn in 0..3 {
        let to = simulation.primary.may_move(workers[0], &key).unwrap();
        assert_eq!(to, Some(listener));
        give_back(&mut simulation, workers[0], listener, conn);
    }
    let held = simulation.workers[&workers[2]].holds.len();
    assert_eq!((held, simulation.primary.status(workers[0]).unwrap().stats.moved), (3, 3));
}

#[test]
fn one_that_nobody_else_can_take_stays_where_it_is() {
    let (mut simulation, workers, _, key) = serving("round-robin", &[true, true]);
    assert!(is_told_to_leave(&mut simulation, 0).contains(r#""moves":true"#));
    // The last one is not even told that it could.
    assert!(!is_told_to_leave(&mut simulation, 1).contains("moves"));
    for worker in workers {
        assert_eq!(simulation.primary.may_move(worker, &key), Ok(None));
    }
}

#[test]
fn where_the_first_bytes_choose_the_worker_or_every_worker_accepts_nothing_moves() {
    for scheduling in ["sticky:cookie=id", "sticky:proxy=pass", "shared"] {
        let (mut simulation, workers, _, key) = serving(scheduling, &[true, true]);
        assert!(!is_told_to_leave(&mut simulation, 0).contains("moves"), "{scheduling}");
        assert_eq!(simulation.primary.may_move(workers[0], &key), Ok(None), "{scheduling}");
    }
}

#[test]
fn connections_that_move_leave_half_of_the_room_to_new_ones() {
    let (mut simulation, workers, listener, key) = serving("round-robin", &[true, true]);
    is_told_to_leave(&mut simulation, 0);
    simulation.happen(Input::Blocked { worker: 1, blocked: true }).unwrap();
    for conn in 0..2 {
        assert_eq!(simulation.primary.may_move(workers[0], &key), Ok(Some(listener)));
        give_back(&mut simulation, workers[0], listener, conn);
    }
    assert_eq!(simulation.primary.may_move(workers[0], &key), Ok(None));
    assert!(simulation.primary.wants_connection(listener));
    simulation.happen(Input::Blocked { worker: 1, blocked: false }).unwrap();
    assert_eq!(simulation.workers[&workers[1]].holds.len(), 2);
}

#[test]
fn who_stays_or_names_a_listener_that_it_never_had_breaks_a_rule() {
    let (mut simulation, workers, _, key) = serving("round-robin", &[true, true]);
    let refused = |simulation: &mut Simulation, key: &str| {
        matches!(simulation.primary.may_move(workers[0], key), Err(Violation::Malformed(_)))
    };
    assert!(refused(&mut simulation, &key));
    is_told_to_leave(&mut simulation, 0);
    assert!(refused(&mut simulation, "another"));
}

#[test]
fn node_workers_are_told_what_they_understand() {
    let (mut simulation, ..) = serving("round-robin", &[false, false]);
    assert!(!is_told_to_leave(&mut simulation, 0).contains("moves"));
}

fn acts(simulation: &Simulation, worker: WorkerId) -> Vec<&str> {
    let lines = simulation.sent.iter().filter(|(to, _)| *to == worker).map(|(_, line)| line);
    lines.map(|line| line.split("\"act\":\"").nth(1).unwrap().split('"').next().unwrap()).collect()
}

fn moves_idle(simulation: &mut Simulation, worker: usize) {
    simulation.happen(Input::Moves { worker }).unwrap();
}

fn told(simulation: &mut Simulation, number: usize) {
    simulation.happen(Input::Disconnect { worker: number, keep: true }).unwrap();
    simulation.happen(Input::Pass { ms: 500 }).unwrap();
}

#[test]
fn a_node_worker_with_the_script_moves_what_is_idle_before_it_is_disconnected() {
    let (mut simulation, workers, _, key) = serving("round-robin", &[false, false]);
    moves_idle(&mut simulation, 0);
    simulation.sent.clear();
    told(&mut simulation, 0);
    assert_eq!(acts(&simulation, workers[0]), ["leave"]);
    let keys = format!(r#""keys":["{key}"],"spread":3000"#);
    assert!(simulation.sent[0].1.contains(&keys), "{:?}", simulation.sent);
    simulation.happen(Input::Moved { worker: 0 }).unwrap();
    simulation.happen(Input::Pass { ms: 0 }).unwrap();
    assert_eq!(acts(&simulation, workers[0]), ["leave", "disconnect"]);
}

#[test]
fn it_is_disconnected_after_a_second_whatever_it_does() {
    let (mut simulation, workers, ..) = serving("round-robin", &[false, false]);
    moves_idle(&mut simulation, 0);
    simulation.happen(Input::Pass { ms: 9_000 }).unwrap();
    simulation.sent.clear();
    told(&mut simulation, 0);
    assert_eq!(acts(&simulation, workers[0]), ["leave"]);
    simulation.happen(Input::Pass { ms: 600 }).unwrap();
    assert_eq!(acts(&simulation, workers[0]), ["leave", "disconnect"]);
}

#[test]
fn when_all_leave_those_that_were_told_to_move_connections_keep_them() {
    let (mut simulation, workers, ..) = serving("round-robin", &[false, false]);
    moves_idle(&mut simulation, 0);
    moves_idle(&mut simulation, 1);
    simulation.sent.clear();
    let keep = |worker| Input::Disconnect { worker, keep: false };
    simulation.happen(keep(0)).unwrap();
    simulation.happen(keep(1)).unwrap();
    simulation.happen(Input::Pass { ms: 500 }).unwrap();
    assert_eq!(acts(&simulation, workers[0]), ["leave", "leave", "disconnect"]);
    assert!(simulation.sent.iter().any(|(_, line)| line.contains(r#""keys":[],"spread":0"#)));
    assert_eq!(acts(&simulation, workers[1]), ["disconnect"]);
}

#[test]
fn where_nothing_can_move_it_is_told_over_what_time_to_close() {
    let (mut simulation, workers, ..) = serving("sticky:proxy=pass", &[false, false]);
    moves_idle(&mut simulation, 0);
    simulation.sent.clear();
    told(&mut simulation, 0);
    assert_eq!(acts(&simulation, workers[0]), ["leave", "disconnect"]);
    assert!(simulation.sent[0].1.contains(r#""keys":[],"spread":3000"#), "{:?}", simulation.sent);
    // Nobody is there any more for whom it would be worth while.
    simulation.primary.hurry();
    simulation.act().unwrap();
    assert_eq!(acts(&simulation, workers[0]), ["leave", "disconnect", "leave"]);
}

#[test]
fn one_of_a_server_that_the_worker_closed_before_stays_where_it_is() {
    let (mut simulation, workers, _, key) = serving("round-robin", &[true, true]);
    simulation.happen(Input::Close { worker: 0, listener: 0 }).unwrap();
    is_told_to_leave(&mut simulation, 0);
    assert_eq!(simulation.primary.may_move(workers[0], &key), Ok(None));
}
