use super::*;

const MS: u64 = 1;

/// A group, and the connections that come to it: `speeds` of them are taken at each look.
struct World {
    group: Group,
    now: Time,
    queues: Vec<f64>,
    speeds: Vec<f64>,
    weights: Vec<u32>,
    seen: Vec<Change>,
    watched: Vec<bool>,
    served: Vec<f64>,
    taken_over: f64,
}

impl World {
    fn new(speeds: &[f64]) -> World {
        let mut group = Group::new(false, None, Time(1));
        speeds.iter().for_each(|_| group.grow());
        let n = speeds.len();
        let mut world = World {
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
        (0..n).for_each(|index| world.group.set_load(index as u16, world.load_of(index)));
        world.group.program();
        world.changes();
        world
    }

    fn load_of(&self, index: usize) -> ShardLoad {
        ShardLoad { present: true, weight: self.weights[index], busy: 0 }
    }

    fn changes(&mut self) {
        for change in std::mem::take(&mut self.group.changes) {
            match change {
                Change::Watch(index, on) => self.watched[usize::from(index)] = on,
                Change::Take(index, count) => {
                    // To whoever has least to do.
                    self.queues[usize::from(index)] -= f64::from(count);
                    let least = (0..self.queues.len()).min_by(|a, b| self.queues[*a].total_cmp(&self.queues[*b])).unwrap();
                    self.queues[least] += f64::from(count);
                }
                _ => {}
            }
            self.seen.push(change);
        }
    }

    /// One look later, with so many connections in between.
    fn look(&mut self, arrivals: f64) {
        let pace = self.group.next_look().since(self.now).as_millis() as u64;
        self.now = Time(self.now.0 + pace * MS);
        let looks = pace as f64 / 50.0;
        let shares = self.group.shares();
        for index in 0..self.queues.len() {
            let queue = &mut self.queues[index];
            *queue += arrivals * looks * shares.get(index).copied().unwrap_or(1.0 / self.speeds.len() as f64);
            if self.watched[index] {
                self.taken_over += *queue;
                *queue = 0.0;
            }
            let taken = queue.min(self.speeds[index] * looks);
            *queue -= taken;
            self.served[index] += taken;
        }
        let queues: Vec<_> = self.queues.iter().map(|q| Some(*q as u32)).collect();
        let reported: Vec<_> = (0..self.queues.len()).map(|index| self.load_of(index)).collect();
        self.group.look(self.now, &queues, &reported);
        self.group.program();
        self.changes();
    }
}

#[test]
fn equal_workers_keep_equal_shares() {
    let mut world = World::new(&[100.0; 8]);
    (0..200).for_each(|_| world.look(400.0));
    assert!(world.group.shares().iter().all(|share| (*share - 0.125).abs() < 0.001), "{:?}", world.group.shares());
    // Also when there is more than they can do.
    (0..100).for_each(|_| world.look(1000.0));
    assert!(world.group.shares().iter().all(|share| (*share - 0.125).abs() < 0.02), "{:?}", world.group.shares());
    assert!(!world.seen.iter().any(|c| matches!(c, Change::Stalled(_))), "{:?}", world.seen);
}

#[test]
fn a_slow_worker_gets_less_and_its_share_back() {
    let mut world = World::new(&[100.0, 100.0, 100.0, 25.0]);
    (0..100).for_each(|_| world.look(250.0));
    world.served.fill(0.0);
    (0..400).for_each(|_| world.look(250.0));
    let share = world.served[3] / world.served.iter().sum::<f64>();
    assert!((0.05..0.13).contains(&share), "{share} {:?}", world.served);
    assert!(world.queues.iter().all(|queue| *queue < 200.0), "{:?}", world.queues);
    assert!(!world.seen.iter().any(|c| matches!(c, Change::Stalled(_))), "slow is not hung: {:?}", world.seen);
    world.speeds[3] = 100.0;
    (0..200).for_each(|_| world.look(1.0));
    assert!((world.group.shares()[3] - 0.25).abs() < 0.02, "{:?}", world.group.shares());
}

#[test]
fn weights_are_kept() {
    let mut world = World::new(&[1000.0; 3]);
    world.weights = vec![100, 300, 600];
    (0..100).for_each(|_| world.look(100.0));
    for (share, expected) in world.group.shares().iter().zip([0.1, 0.3, 0.6]) {
        assert!((share - expected).abs() < 0.005, "{:?}", world.group.shares());
    }
}

#[test]
fn a_hung_worker_is_found_out_soon_its_queue_is_taken_over_and_it_comes_back() {
    for hung in [1, 3] {
        let mut world = World::new(&[100.0; 8]);
        (0..50).for_each(|_| world.look(200.0));
        world.seen.clear();
        (0..hung).for_each(|index| world.speeds[index] = 0.0);
        let before = world.now;
        while world.seen.iter().filter(|c| matches!(c, Change::Stalled(_))).count() < hung {
            world.look(200.0);
            assert!(world.now.since(before) < Duration::from_secs(1), "{:?}", world.seen);
        }
        for index in 0..hung {
            assert!(world.watched[index], "its queue is the primary's now");
            assert!(world.group.shares()[index] < 0.001);
            assert!(world.group.hung_since(index as u16).is_some());
        }
        world.look(200.0);
        assert!(world.queues[0] < 1.0 && world.taken_over > 0.0);
        // It goes on hanging: few connections are risked, and it is reported once.
        let (before, risked) = (world.now, world.taken_over);
        while world.now.since(before) < Duration::from_secs(30) {
            world.look(200.0);
        }
        assert_eq!(world.seen.iter().filter(|c| matches!(c, Change::Stalled(_))).count(), hung);
        assert!(world.taken_over - risked < 30.0 * 20.0 * 200.0 * 0.01 * hung as f64, "{}", world.taken_over - risked);
        world.speeds.fill(100.0);
        (0..600).for_each(|_| world.look(200.0));
        assert_eq!(world.seen.iter().filter(|c| matches!(c, Change::Recovered(_))).count(), hung, "{:?}", world.seen);
        assert!(!world.watched[0]);
        assert!(world.group.shares().iter().all(|share| (*share - 0.125).abs() < 0.03), "{:?}", world.group.shares());
    }
}

#[test]
fn a_hung_worker_among_a_thousand_stays_found_out() {
    let mut world = World::new(&[100.0; 1000]);
    world.look(20_000.0);
    world.speeds[7] = 0.0;
    let before = world.now;
    while world.group.hung_since(7).is_none() {
        world.look(20_000.0);
        assert!(world.now.since(before) < Duration::from_secs(3), "{:?}", world.seen);
    }
    let found = world.group.hung_since(7);
    while world.now.since(before) < Duration::from_secs(30) {
        world.look(20_000.0);
    }
    assert_eq!((world.group.hung_since(7), world.seen.iter().filter(|c| matches!(c, Change::Stalled(_))).count()), (found, 1));
}

#[test]
fn an_only_worker_is_never_given_up() {
    let mut world = World::new(&[0.0]);
    (0..100).for_each(|_| world.look(10.0));
    let mut world_of_two = World::new(&[0.0, 0.0]);
    (0..100).for_each(|_| world_of_two.look(10.0));
    for world in [world, world_of_two] {
        assert!(!world.seen.iter().any(|c| matches!(c, Change::Stalled(_))), "{:?}", world.seen);
        assert!(world.watched.iter().all(|w| !w));
    }
}

#[test]
fn a_vacant_place_is_watched_and_gets_nothing_new() {
    let mut world = World::new(&[100.0; 4]);
    world.group.set_load(2, ShardLoad::default());
    assert!(world.group.program().is_some());
    world.changes();
    assert!(world.watched[2]);
    assert_eq!(world.group.shares()[2], 0.0);
    world.group.set_load(2, world.load_of(2));
    assert!(world.group.program().is_some());
    world.changes();
    assert!(!world.watched[2]);
    assert!((world.group.shares()[2] - 0.25).abs() < 0.001);
    assert_eq!(world.group.program(), None, "nothing has changed");
}

#[test]
fn an_idle_group_is_seldom_looked_at() {
    let mut world = World::new(&[100.0; 4]);
    (0..100).for_each(|_| world.look(0.0));
    let before = world.now;
    (0..10).for_each(|_| world.look(0.0));
    assert!(world.now.since(before) >= Duration::from_secs(5));
}
