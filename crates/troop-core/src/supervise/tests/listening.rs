//! Workers whose predecessors listened.

use super::*;

#[test]
fn a_worker_whose_predecessor_listened_is_ready_when_it_listens_not_by_its_age() {
    let config = changed(Config::new(2), |config| config.replace.min_ready_time = Duration::ZERO);
    let mut simulation = Simulation::with(config);
    (1..=2).for_each(|worker| simulation.up(worker));
    simulation.pass(10 * SECOND);
    simulation.exit(2, 1);
    simulation.pass(SECOND);
    let successor = WorkerId(simulation.of(1));
    let is_ready = |simulation: &Simulation| {
        simulation.supervisor.standing(simulation.now, successor).unwrap().0
    };
    simulation.supervisor.online(simulation.now, successor, true);
    // However slow the machine is; the other one serves alone meanwhile.
    simulation.pass(20 * SECOND);
    assert!(!is_ready(&simulation));
    assert_eq!(simulation.supervisor.state(), SupervisorState::Degraded);
    simulation.up(successor.0);
    assert!(is_ready(&simulation));
    assert_eq!(simulation.supervisor.state(), SupervisorState::Running);
}

#[test]
fn one_that_does_not_listen_any_more_is_ready_when_it_had_time_enough_to() {
    let config = changed(Config::new(1), |config| config.replace.min_ready_time = Duration::ZERO);
    let mut simulation = Simulation::with(config.clone());
    simulation.up(1);
    simulation.pass(10 * SECOND);
    let is_ready = |simulation: &Simulation| {
        let worker = WorkerId(simulation.of(0));
        simulation.supervisor.standing(simulation.now, worker).unwrap().0
    };
    // The next ones are measured by that one.
    for patience in [config.replace.ready_timeout, config.listen_patience] {
        simulation.exit(simulation.of(0), 1);
        simulation.pass(SECOND);
        let worker = WorkerId(simulation.of(0));
        let started = simulation.supervisor.started_at(worker).unwrap();
        simulation.supervisor.online(started, worker, true);
        simulation.pass(patience - SECOND - SECOND);
        assert!(!is_ready(&simulation));
        simulation.pass(10 * SECOND);
        assert!(is_ready(&simulation));
        assert_eq!(WorkerId(simulation.of(0)), worker, "it was not ended");
    }
}
