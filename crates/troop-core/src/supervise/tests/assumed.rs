//! Workers that count as ready without having said so, and clusters that go on without workers.

use super::*;

fn by_message() -> Config {
    changed(Config::new(1), |config| {
        config.replace.min_ready_time = Duration::ZERO;
        config.replace.ready_when = ReadyWhen::Message;
        config.replace.assume_ready_after = Some(3 * SECOND);
    })
}

fn assumed(simulation: &Simulation) -> Vec<u32> {
    let of = |progress: &Progress| match progress {
        Progress::AssumedReady { worker, by_notification: false, within } => {
            assert_eq!(*within, 3 * SECOND);
            Some(worker.0)
        }
        _ => None,
    };
    simulation.progress.iter().filter_map(of).collect()
}

#[test]
fn a_worker_that_says_nothing_is_ready_after_a_time_and_that_is_reported_once() {
    let mut simulation = Simulation::with(by_message());
    simulation.supervisor.online(simulation.now, WorkerId(1), true);
    simulation.pass(2 * SECOND);
    assert_eq!(simulation.supervisor.state(), SupervisorState::Starting);
    simulation.pass(SECOND);
    assert_eq!(simulation.supervisor.state(), SupervisorState::Running);
    assert_eq!(assumed(&simulation), [1]);
    // It is not late, and what it says later changes nothing.
    simulation.pass(100 * SECOND);
    simulation.supervisor.reported_ready(simulation.now, WorkerId(1));
    simulation.carry_out();
    assert_eq!((assumed(&simulation), simulation.asked.len()), (vec![1], 0));
    // Its successor in a reload, too.
    simulation.supervisor.reload(simulation.now);
    simulation.carry_out();
    simulation.supervisor.online(simulation.now, WorkerId(2), true);
    simulation.pass(3 * SECOND);
    assert_eq!((assumed(&simulation), simulation.of(0)), (vec![1, 2], 2));
}

#[test]
fn a_worker_that_says_it_is_ready_is_not_reported() {
    let mut simulation = Simulation::with(by_message());
    simulation.supervisor.online(simulation.now, WorkerId(1), true);
    simulation.supervisor.reported_ready(simulation.now, WorkerId(1));
    simulation.carry_out();
    assert_eq!(simulation.supervisor.state(), SupervisorState::Running);
    simulation.pass(10 * SECOND);
    assert_eq!(assumed(&simulation), [0; 0]);
}

#[test]
fn a_long_minimum_uptime_makes_no_silent_worker_late() {
    for (has_ipc, ready_timeout, age) in
        [(true, 30, 10), (false, 30, 10), (true, 8, 4), (false, 8, 4)]
    {
        let mut simulation = Simulation::with(changed(Config::new(1), |config| {
            config.restart.min_uptime = 180 * SECOND;
            config.replace.ready_timeout = ready_timeout * SECOND;
        }));
        if has_ipc {
            simulation.supervisor.online(simulation.now, WorkerId(1), true);
        }
        simulation.pass((age - 1) * SECOND);
        assert_eq!(simulation.supervisor.state(), SupervisorState::Starting);
        simulation.pass(SECOND);
        assert_eq!(
            simulation.supervisor.state(),
            SupervisorState::Running,
            "{has_ipc} {ready_timeout}"
        );
        // It goes on, and nothing is given up.
        simulation.pass(600 * SECOND);
        assert_eq!((simulation.forks, simulation.asked.len()), (1, 0));
    }
}

#[test]
fn a_cluster_may_go_on_when_all_workers_have_ended_for_good() {
    let mut simulation = Simulation::with(changed(Config::new(0), |config| {
        config.restart.restart = Restart::Never;
        config.restart.stay_when_ended = true;
        config.restart.been_ready = true;
    }));
    for code in [0, 3] {
        simulation.supervisor.scale(simulation.now, 1);
        simulation.carry_out();
        let worker = simulation.next_worker;
        simulation.exit(worker, code);
        simulation.pass(300 * SECOND);
        assert_eq!((simulation.next_worker, &simulation.outcome), (worker, &None));
        assert!(!simulation.progress.iter().any(|p| matches!(p, Progress::Degraded { .. })));
        simulation.supervisor.scale(simulation.now, 0);
        simulation.carry_out();
    }
    simulation.supervisor.stop(simulation.now);
    simulation.carry_out();
    assert!(simulation.outcome.is_some());
}
