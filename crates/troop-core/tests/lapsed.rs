//! Listeners that were not left open for successors: which of them are missed.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use simulation::steps::*;
use troop_core::primary::Successors;

#[test]
fn a_port_that_closed_with_its_worker_is_missed_when_the_successor_listens_elsewhere_and_not_before()
 {
    let mut simulation = impatient();
    listening(&mut simulation, &[9]);
    let worker = listening(&mut simulation, &[1]);
    let next = dies_and_returns(&mut simulation, worker, &[1]);
    pass(&mut simulation, 60_000);
    assert_eq!(simulation.missed, [], "its successor has it");
    simulation.successors = Successors::Awaited;
    dies(&mut simulation, next);
    assert_eq!(simulation.listeners.len(), 1, "it has closed");
    pass(&mut simulation, 600_000);
    assert_eq!(claims(&simulation, false), [(Some(9), 1, OWN), (Some(1), 0, OWN)]);
    let next = starting(&mut simulation);
    simulation.successors = Successors::Nobody;
    pass(&mut simulation, 29_000);
    listen(&mut simulation, next, &[2]);
    pass(&mut simulation, 2_900);
    assert_eq!(simulation.missed, [], "it may ask for more");
    pass(&mut simulation, 200);
    assert_eq!(simulation.missed, [Some(1)]);
    assert_eq!(claims(&simulation, false), [(Some(9), 1, OWN), (Some(2), 1, OWN)]);
}

#[test]
fn a_port_that_closed_is_not_missed_where_nobody_is_to_open_it_again() {
    // The worker has closed it by itself and goes on.
    let mut simulation = impatient();
    let worker = listening(&mut simulation, &[1, 2]);
    closes(&mut simulation, worker, 0);
    assert_eq!(simulation.listeners.len(), 1);
    pass(&mut simulation, 60_000);
    assert_eq!(simulation.missed, []);
    // It is one too many.
    let worker = listening(&mut simulation, &[3]);
    simulation.primary.disconnect(worker, false, None);
    simulation.primary.excuse(worker);
    simulation.act().unwrap();
    // A new generation does without it.
    let worker = listening(&mut simulation, &[4]);
    simulation.successors = Successors::Awaited;
    dies(&mut simulation, worker);
    listening(&mut simulation, &[5]);
    simulation.primary.forget_shared();
    simulation.successors = Successors::Nobody;
    pass(&mut simulation, 60_000);
    // The kernel had chosen it.
    let worker = listening(&mut simulation, &[0]);
    dies_and_returns(&mut simulation, worker, &[6]);
    pass(&mut simulation, 60_000);
    // Nobody is to come at all.
    let worker = listening(&mut simulation, &[7]);
    simulation.primary.close_unused_listeners();
    dies(&mut simulation, worker);
    pass(&mut simulation, 60_000);
    assert_eq!(simulation.missed, []);
}

#[test]
fn a_port_that_closed_before_a_reload_that_failed_is_still_missed_and_what_the_reload_opened_is_not()
 {
    let mut simulation = impatient();
    listening(&mut simulation, &[9]);
    let worker = listening(&mut simulation, &[1]);
    simulation.successors = Successors::Awaited;
    dies(&mut simulation, worker);
    let before = simulation.primary.listeners_to_keep();
    let new = listening(&mut simulation, &[2]);
    dies(&mut simulation, new);
    simulation.primary.close_unused_but(&before);
    listening(&mut simulation, &[9]);
    simulation.successors = Successors::Nobody;
    pass(&mut simulation, 60_000);
    assert_eq!(simulation.missed, [Some(1)]);
}

#[test]
fn what_only_a_failed_replacement_has_opened_is_not_missed_while_its_predecessor_serves() {
    for mut simulation in [supervised(), impatient()] {
        let worker = listening(&mut simulation, &[1]);
        simulation.successors = Successors::Nobody;
        let failed = replacing(&mut simulation, worker);
        listen(&mut simulation, failed, &[1, 2]);
        dies(&mut simulation, failed);
        pass(&mut simulation, 60_000);
        assert_eq!((simulation.missed.as_slice(), simulation.listeners.len()), (&[][..], 1));
        // Once its predecessor was told to leave, it is the one that serves.
        let successor = replacing(&mut simulation, worker);
        listen(&mut simulation, successor, &[1, 3]);
        leaves(&mut simulation, worker);
        dies_and_returns(&mut simulation, successor, &[1]);
        pass(&mut simulation, 60_000);
        assert_eq!(simulation.missed, [Some(3)]);
    }
}

#[test]
fn listeners_that_are_not_to_wait_any_more_close_and_are_missed_all_the_same() {
    let mut simulation = supervised();
    listening(&mut simulation, &[9]);
    let worker = listening(&mut simulation, &[1]);
    simulation.successors = Successors::Awaited;
    dies(&mut simulation, worker);
    assert_eq!(simulation.listeners.len(), 2);
    simulation.primary.set_keep_listeners(false);
    simulation.act().unwrap();
    assert_eq!(simulation.listeners.len(), 1);
    listening(&mut simulation, &[2]);
    simulation.successors = Successors::Nobody;
    pass(&mut simulation, 60_000);
    assert_eq!(simulation.missed, [Some(1)]);
}
