//! Steps of tests about listeners: workers that start, listen, close and leave.

use troop_core::WorkerId;
use troop_core::primary::{Config, Successors};

use super::{Input, Simulation, Worker, config};

/// A worker that listens on these ports.
pub fn listening(simulation: &mut Simulation, ports: &[u16]) -> WorkerId {
    let worker = starting(simulation);
    listen(simulation, worker, ports);
    worker
}

pub fn starting(simulation: &mut Simulation) -> WorkerId {
    simulation.happen(Input::Fork { troop: false }).unwrap();
    *simulation.workers.keys().last().unwrap()
}

/// A worker that starts beside another one of its slot.
pub fn replacing(simulation: &mut Simulation, old: WorkerId) -> WorkerId {
    let next = simulation.primary.fork();
    let slot = simulation.primary.status(old).unwrap().slot;
    simulation.primary.spawned(next, 4711, Some(slot), 100);
    simulation.workers.insert(next, Worker { connected: true, ..Worker::default() });
    next
}

pub fn listen(simulation: &mut Simulation, worker: WorkerId, ports: &[u16]) {
    for port in ports {
        simulation.of_worker(worker, Input::Query { worker: 0, port: *port, fails: false });
        simulation.act().unwrap();
        simulation.of_worker(worker, Input::Listening { worker: 0, port: *port });
        simulation.act().unwrap();
    }
}

pub fn dies(simulation: &mut Simulation, worker: WorkerId) {
    simulation.of_worker(worker, Input::Exit { worker: 0 });
    simulation.act().unwrap();
}

pub fn leaves(simulation: &mut Simulation, worker: WorkerId) {
    simulation.of_worker(worker, Input::Disconnect { worker: 0, keep: true });
    simulation.act().unwrap();
}

pub fn pass(simulation: &mut Simulation, ms: u64) {
    simulation.happen(Input::Pass { ms }).unwrap();
}

/// The workers of these tests say nothing for a long time.
pub fn patient() -> Config {
    Config { hang_timeout: None, ..Config::default() }
}

pub fn supervised() -> Simulation {
    let mut simulation = Simulation::new(patient());
    simulation.primary.set_supervised(true);
    simulation.successors = Successors::Nobody;
    simulation
}

pub fn dies_and_returns(simulation: &mut Simulation, worker: WorkerId, ports: &[u16]) -> WorkerId {
    simulation.successors = Successors::Awaited;
    dies(simulation, worker);
    let next = listening(simulation, ports);
    simulation.successors = Successors::Nobody;
    simulation.act().unwrap();
    next
}

pub fn leaves_for_good(simulation: &mut Simulation, worker: WorkerId) {
    simulation.primary.disconnect(worker, true, None);
    simulation.primary.excuse(worker);
    simulation.act().unwrap();
}

/// As Node's `cluster.worker.disconnect()` begins, and `server.close()`.
pub fn closes(simulation: &mut Simulation, worker: WorkerId, which: usize) {
    simulation.of_worker(worker, Input::Close { worker: 0, listener: which });
    simulation.act().unwrap();
}

pub fn claims(simulation: &Simulation, only: bool) -> Vec<(Option<i64>, usize, bool)> {
    simulation
        .primary
        .claims(only)
        .iter()
        .map(|claim| (claim.at.port, claim.holders.len(), claim.is_shared))
        .collect()
}

pub const SHARED: bool = true;
pub const OWN: bool = false;

/// Without listeners that wait for workers.
pub fn impatient() -> Simulation {
    let mut simulation = Simulation::new(Config { keep_listeners: false, ..patient() });
    simulation.primary.set_supervised(true);
    simulation.successors = Successors::Nobody;
    simulation
}
