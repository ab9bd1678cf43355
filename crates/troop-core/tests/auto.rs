//! Listeners under `auto`: exact turns while connections are few, the kernel while they are many.
#![allow(clippy::unwrap_used)]

mod simulation;

use std::time::Duration;

use simulation::{Input, Simulation};
use troop_core::policy::Scheduling;
use troop_core::primary::Config;
use troop_core::steer::program::always;
use troop_core::steer::{Mode, ModeReason};
use troop_core::{ListenerId, WorkerId};

const AT: ListenerId = ListenerId(1);

/// A cluster under `auto` with so many workers that listen, of troop's or of Node's.
fn cluster(workers: usize, troop: bool) -> Simulation {
    let mut simulation =
        Simulation::new(Config { scheduling: Scheduling::Auto, ..Config::default() });
    simulation.calm = true;
    // The simulation fails every fourth opening of a socket.
    for worker in 0..workers {
        simulation.looks = 0;
        simulation.happen(Input::Fork { troop }).unwrap();
        simulation.happen(Input::Query { worker, port: 1, fails: false }).unwrap();
        simulation.happen(Input::Listening { worker, port: 1 }).unwrap();
    }
    simulation
}

fn mode(simulation: &Simulation) -> Mode {
    simulation.primary.mode(AT).unwrap().mode
}

/// How many connections each worker holds.
fn held(simulation: &Simulation) -> Vec<usize> {
    simulation.workers.values().map(|worker| worker.holds.len()).collect()
}

fn flood(simulation: &mut Simulation) {
    simulation.looks = 0;
    simulation.happen(Input::Flood { listener: 0 }).unwrap();
}

fn pass(simulation: &mut Simulation, ms: u64) {
    simulation.happen(Input::Pass { ms }).unwrap();
}

#[test]
fn a_burst_comes_out_even_and_the_kernel_sends_it_to_the_primary() {
    for troop in [true, false] {
        let mut simulation = cluster(4, troop);
        assert_eq!(mode(&simulation), Mode::Turns);
        assert_eq!(simulation.programs[&AT], always(0));
        for _ in 0..64 {
            simulation.happen(Input::Accept { listener: 0 }).unwrap();
        }
        assert_eq!(held(&simulation), [16; 4], "troop: {troop}");
        assert_eq!(mode(&simulation), Mode::Turns);
    }
}

#[test]
fn a_flood_goes_to_the_workers_themselves_and_turns_come_back_after_it() {
    let mut simulation = cluster(2, true);
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Steered);
    let ModeReason::Rate(rate) = simulation.primary.mode(AT).unwrap().reason else {
        panic!("{:?}", simulation.primary.mode(AT));
    };
    assert!(rate > 50_000, "{rate}");
    assert_ne!(simulation.programs[&AT], always(0));
    pass(&mut simulation, 1000);
    assert_eq!(mode(&simulation), Mode::Steered, "not after a moment");
    pass(&mut simulation, 4000);
    assert_eq!((mode(&simulation), &simulation.programs[&AT]), (Mode::Turns, &always(0)));
    for _ in 0..10 {
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
    }
    assert_eq!(held(&simulation), [5; 2]);
}

#[test]
fn connections_that_wait_at_a_change_of_the_mode_are_served() {
    let mut simulation = cluster(2, true);
    for worker in 0..2 {
        simulation.happen(Input::Blocked { worker, blocked: true }).unwrap();
    }
    for _ in 0..20 {
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
    }
    flood(&mut simulation);
    assert_eq!((mode(&simulation), simulation.waiting.len()), (Mode::Steered, 20));
    simulation.happen(Input::Blocked { worker: 0, blocked: false }).unwrap();
    assert_eq!((held(&simulation), simulation.waiting.len()), (vec![20, 0], 0));
}

#[test]
fn a_listener_stays_in_turns_of_which_a_node_worker_rejects_connections() {
    let mut simulation = cluster(2, false);
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Steered);
    simulation.happen(Input::Accept { listener: 0 }).unwrap();
    let at = simulation.workers.values().position(|worker| !worker.holds.is_empty()).unwrap();
    let worker = simulation.worker(at).unwrap();
    simulation.happen(Input::Answer { worker: at, which: 0, accepted: false }).unwrap();
    assert_eq!((mode(&simulation), &simulation.programs[&AT]), (Mode::Turns, &always(0)));
    for _ in 0..3 {
        flood(&mut simulation);
        assert_eq!(mode(&simulation), Mode::Turns);
    }
    assert_eq!(simulation.primary.mode(AT).unwrap().reason, ModeReason::Limited(worker));
}

#[test]
fn a_listener_stays_in_turns_of_which_the_script_in_a_worker_reports_a_limit() {
    let mut simulation = cluster(2, false);
    let worker = simulation.worker(1).unwrap();
    let key = simulation.primary.listener_key(AT).unwrap().to_owned();
    simulation.says(worker, r#"{"cmd":"NODE_TROOP","act":"limited","key":"another"}"#);
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Steered, "it has no such listener");
    simulation.says(worker, &format!(r#"{{"cmd":"NODE_TROOP","act":"limited","key":"{key}"}}"#));
    assert_eq!((mode(&simulation), &simulation.programs[&AT]), (Mode::Turns, &always(0)));
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Turns);
}

#[test]
fn a_connection_that_a_troop_worker_returns_does_not_keep_a_listener_in_turns() {
    let mut simulation = cluster(2, true);
    simulation.happen(Input::Accept { listener: 0 }).unwrap();
    let at = simulation.workers.values().position(|worker| !worker.holds.is_empty()).unwrap();
    simulation.happen(Input::Batch { worker: at, taken: 0, returned: 1 }).unwrap();
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Steered);
}

#[test]
fn a_rejection_of_a_worker_that_leaves_does_not_keep_a_listener_in_turns() {
    let mut simulation = cluster(2, false);
    simulation.happen(Input::Accept { listener: 0 }).unwrap();
    let at = simulation.workers.values().position(|worker| !worker.holds.is_empty()).unwrap();
    simulation.happen(Input::Disconnect { worker: at, keep: true }).unwrap();
    simulation.happen(Input::Answer { worker: at, which: 0, accepted: false }).unwrap();
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Steered);
}

#[test]
fn sockets_of_others_send_a_listener_back_to_its_first_socket_while_they_are_there() {
    let mut simulation = cluster(2, true);
    flood(&mut simulation);
    simulation.happen(Input::Foreign { listener: 0, there: true }).unwrap();
    assert_eq!((mode(&simulation), &simulation.programs[&AT]), (Mode::Turns, &always(0)));
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Turns);
    simulation.happen(Input::Foreign { listener: 0, there: false }).unwrap();
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Steered);
}

#[test]
fn without_known_numbers_all_connections_come_to_the_first_socket() {
    let mut simulation = cluster(2, true);
    flood(&mut simulation);
    simulation.primary.numbers_lost(simulation.now, AT);
    simulation.act().unwrap();
    assert_eq!((mode(&simulation), &simulation.programs[&AT]), (Mode::Turns, &always(0)));
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Turns);
}

#[test]
fn an_open_listener_changes_between_auto_and_what_the_primary_or_the_kernel_does() {
    let mut simulation = cluster(2, true);
    let change = |simulation: &mut Simulation, text: &str| {
        let later = simulation.primary.set_scheduling(simulation.now, None, text.parse().unwrap());
        simulation.act().unwrap();
        (later.len(), simulation.programs[&AT] == always(0))
    };
    flood(&mut simulation);
    assert_eq!(change(&mut simulation, "p2c"), (0, true));
    flood(&mut simulation);
    assert_eq!(simulation.programs[&AT], always(0), "the primary chooses");
    assert_eq!(change(&mut simulation, "steered"), (0, false));
    assert_eq!(change(&mut simulation, "sticky:cookie=sid"), (0, true));
    assert_eq!(change(&mut simulation, "auto"), (0, true));
    flood(&mut simulation);
    assert_eq!(mode(&simulation), Mode::Steered);
    // A worker that joins while the primary chooses has a socket of its own, too.
    change(&mut simulation, "round-robin");
    simulation.looks = 0;
    simulation.happen(Input::Fork { troop: true }).unwrap();
    simulation.happen(Input::Query { worker: 2, port: 1, fails: false }).unwrap();
    assert!(simulation.workers[&WorkerId(3)].sockets.contains_key(&(AT, 2)));
    // What has no group, or one that keeps clients apart, is opened again.
    assert_eq!(change(&mut simulation, "shared"), (1, true));
    assert_eq!(change(&mut simulation, "steered:sticky"), (1, true));
}

#[test]
fn weights_do_not_count_in_either_mode() {
    let mut simulation = cluster(2, true);
    simulation.happen(Input::Weigh { worker: 0, weight: 300 }).unwrap();
    flood(&mut simulation);
    let shares = simulation.primary.shares(AT).unwrap();
    assert!(shares.iter().all(|share| (share - 0.5).abs() < 0.01), "{shares:?}");
}

#[test]
fn a_flood_of_which_nobody_is_there_to_take_anything_loses_nothing() {
    let mut simulation = cluster(1, true);
    flood(&mut simulation);
    simulation.happen(Input::Exit { worker: 0 }).unwrap();
    for _ in 0..5 {
        simulation.happen(Input::Accept { listener: 0 }).unwrap();
    }
    simulation.now = simulation.now + Duration::from_millis(1);
    assert_eq!(simulation.waiting.len(), 5);
    simulation.looks = 0;
    simulation.happen(Input::Fork { troop: true }).unwrap();
    simulation.happen(Input::Query { worker: 0, port: 1, fails: false }).unwrap();
    assert_eq!((held(&simulation), simulation.waiting.len()), (vec![5], 0));
}
