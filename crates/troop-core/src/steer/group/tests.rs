use super::*;

const MS: u64 = 1;

/// Simulates a group whose workers take `speeds` connections per check.
struct Simulation {
    group: ShardGroup,
    now: Time,
    queues: Vec<f64>,
    speeds: Vec<f64>,
    weights: Vec<u32>,
    seen: Vec<Change>,
    watched: Vec<bool>,
    served: Vec<f64>,
    taken_over: f64,
}

impl Simulation {
    fn new(speeds: &[f64]) -> Simulation {
        let mut group = ShardGroup::new(false, None, Time(1));
        speeds.iter().for_each(|_| group.grow());
        let n = speeds.len();
        let mut simulation = Simulation {
            group,
            now: Time(1),
            queues: vec![0.0; n],
            speeds: speeds.to_vec(),
            weights: vec![100; n],
            seen: Vec::new(),
            watched: vec![true; n],
            served: vec![0.0; n],
            taken_over: 0.0,
        };
        (0..n).for_each(|index| simulation.group.set_load(index as u16, simulation.load_of(index)));
        simulation.group.program();
        simulation.changes();
        simulation
    }

    fn load_of(&self, index: usize) -> ShardLoad {
        ShardLoad { present: true, weight: self.weights[index], busy: 0 }
    }

    fn changes(&mut self) {
        for change in std::mem::take(&mut self.group.changes) {
            match change {
                Change::Watch(index, on) => self.watched[usize::from(index)] = on,
                Change::Take(index, count) => {
                    // To the worker with the shortest queue.
                    self.queues[usize::from(index)] -= f64::from(count);
                    let least = (0..self.queues.len())
                        .min_by(|a, b| self.queues[*a].total_cmp(&self.queues[*b]))
                        .unwrap();
                    self.queues[least] += f64::from(count);
                }
                _ => {}
            }
            self.seen.push(change);
        }
    }

    /// Advances by one check, with this many arrivals in between.
    fn check(&mut self, arrivals: f64) {
        let pace = self.group.next_check().since(self.now).as_millis() as u64;
        self.now = Time(self.now.0 + pace * MS);
        let checks = pace as f64 / 50.0;
        let shares = self.group.shares();
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            *queue += arrivals
                * checks
                * shares.get(index).copied().unwrap_or(1.0 / self.speeds.len() as f64);
            if self.watched[index] {
                self.taken_over += *queue;
                *queue = 0.0;
            }
            let taken = queue.min(self.speeds[index] * checks);
            *queue -= taken;
            self.served[index] += taken;
        }
        let queues: Vec<_> = self.queues.iter().map(|q| Some(*q as u32)).collect();
        let reported: Vec<_> = (0..self.queues.len()).map(|index| self.load_of(index)).collect();
        self.group.evaluate(self.now, &queues, &reported);
        self.group.program();
        self.changes();
    }
}

#[test]
fn equal_workers_keep_equal_shares() {
    let mut simulation = Simulation::new(&[100.0; 8]);
    (0..200).for_each(|_| simulation.check(400.0));
    assert!(
        simulation.group.shares().iter().all(|share| (*share - 0.125).abs() < 0.001),
        "{:?}",
        simulation.group.shares()
    );
    // Also under overload.
    (0..100).for_each(|_| simulation.check(1000.0));
    assert!(
        simulation.group.shares().iter().all(|share| (*share - 0.125).abs() < 0.02),
        "{:?}",
        simulation.group.shares()
    );
    assert!(
        !simulation.seen.iter().any(|c| matches!(c, Change::Stalled(_))),
        "{:?}",
        simulation.seen
    );
}

#[test]
fn a_slow_worker_gets_less_and_regains_its_share() {
    let mut simulation = Simulation::new(&[100.0, 100.0, 100.0, 25.0]);
    (0..100).for_each(|_| simulation.check(250.0));
    simulation.served.fill(0.0);
    (0..400).for_each(|_| simulation.check(250.0));
    let share = simulation.served[3] / simulation.served.iter().sum::<f64>();
    assert!((0.05..0.13).contains(&share), "{share} {:?}", simulation.served);
    assert!(simulation.queues.iter().all(|queue| *queue < 200.0), "{:?}", simulation.queues);
    assert!(
        !simulation.seen.iter().any(|c| matches!(c, Change::Stalled(_))),
        "slow is not hung: {:?}",
        simulation.seen
    );
    simulation.speeds[3] = 100.0;
    (0..200).for_each(|_| simulation.check(1.0));
    assert!((simulation.group.shares()[3] - 0.25).abs() < 0.02, "{:?}", simulation.group.shares());
}

#[test]
fn weights_are_kept() {
    let mut simulation = Simulation::new(&[1000.0; 3]);
    simulation.weights = vec![100, 300, 600];
    (0..100).for_each(|_| simulation.check(100.0));
    for (share, expected) in simulation.group.shares().iter().zip([0.1, 0.3, 0.6]) {
        assert!((share - expected).abs() < 0.005, "{:?}", simulation.group.shares());
    }
}

#[test]
fn a_hung_worker_is_detected_its_queue_is_taken_over_and_it_recovers() {
    for hung in [1, 3] {
        let mut simulation = Simulation::new(&[100.0; 8]);
        (0..50).for_each(|_| simulation.check(200.0));
        simulation.seen.clear();
        (0..hung).for_each(|index| simulation.speeds[index] = 0.0);
        let before = simulation.now;
        while simulation.seen.iter().filter(|c| matches!(c, Change::Stalled(_))).count() < hung {
            simulation.check(200.0);
            assert!(simulation.now.since(before) < Duration::from_secs(1), "{:?}", simulation.seen);
        }
        for index in 0..hung {
            assert!(simulation.watched[index], "its queue is the primary's now");
            assert!(simulation.group.shares()[index] < 0.001);
            assert!(simulation.group.hung_since(index as u16).is_some());
        }
        simulation.check(200.0);
        assert!(simulation.queues[0] < 1.0 && simulation.taken_over > 0.0);
        // While it hangs, few connections are risked, and it is reported once.
        let (before, risked) = (simulation.now, simulation.taken_over);
        while simulation.now.since(before) < Duration::from_secs(30) {
            simulation.check(200.0);
        }
        assert_eq!(
            simulation.seen.iter().filter(|c| matches!(c, Change::Stalled(_))).count(),
            hung
        );
        assert!(
            simulation.taken_over - risked < 30.0 * 20.0 * 200.0 * 0.01 * hung as f64,
            "{}",
            simulation.taken_over - risked
        );
        simulation.speeds.fill(100.0);
        (0..600).for_each(|_| simulation.check(200.0));
        assert_eq!(
            simulation.seen.iter().filter(|c| matches!(c, Change::Recovered(_))).count(),
            hung,
            "{:?}",
            simulation.seen
        );
        assert!(!simulation.watched[0]);
        assert!(
            simulation.group.shares().iter().all(|share| (*share - 0.125).abs() < 0.03),
            "{:?}",
            simulation.group.shares()
        );
    }
}

#[test]
fn a_hung_worker_among_a_thousand_stays_detected() {
    let mut simulation = Simulation::new(&[100.0; 1000]);
    simulation.check(20_000.0);
    simulation.speeds[7] = 0.0;
    let before = simulation.now;
    while simulation.group.hung_since(7).is_none() {
        simulation.check(20_000.0);
        assert!(simulation.now.since(before) < Duration::from_secs(3), "{:?}", simulation.seen);
    }
    let found = simulation.group.hung_since(7);
    while simulation.now.since(before) < Duration::from_secs(30) {
        simulation.check(20_000.0);
    }
    assert_eq!(
        (
            simulation.group.hung_since(7),
            simulation.seen.iter().filter(|c| matches!(c, Change::Stalled(_))).count()
        ),
        (found, 1)
    );
}

#[test]
fn a_single_worker_never_counts_as_hung() {
    let mut simulation = Simulation::new(&[0.0]);
    (0..100).for_each(|_| simulation.check(10.0));
    let mut simulation_of_two = Simulation::new(&[0.0, 0.0]);
    (0..100).for_each(|_| simulation_of_two.check(10.0));
    for simulation in [simulation, simulation_of_two] {
        assert!(
            !simulation.seen.iter().any(|c| matches!(c, Change::Stalled(_))),
            "{:?}",
            simulation.seen
        );
        assert!(simulation.watched.iter().all(|w| !w));
    }
}

#[test]
fn a_vacant_shard_is_watched_and_gets_no_new_connections() {
    let mut simulation = Simulation::new(&[100.0; 4]);
    simulation.group.set_load(2, ShardLoad::default());
    assert!(simulation.group.program().is_some());
    simulation.changes();
    assert!(simulation.watched[2]);
    assert_eq!(simulation.group.shares()[2], 0.0);
    simulation.group.set_load(2, simulation.load_of(2));
    assert!(simulation.group.program().is_some());
    simulation.changes();
    assert!(!simulation.watched[2]);
    assert!((simulation.group.shares()[2] - 0.25).abs() < 0.001);
    assert_eq!(simulation.group.program(), None, "nothing has changed");
}

#[test]
fn an_idle_group_is_checked_seldom() {
    let mut simulation = Simulation::new(&[100.0; 4]);
    (0..100).for_each(|_| simulation.check(0.0));
    let before = simulation.now;
    (0..10).for_each(|_| simulation.check(0.0));
    assert!(simulation.now.since(before) >= Duration::from_secs(5));
}
