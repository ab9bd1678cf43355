use proptest::prelude::*;

use super::*;
use crate::event::{ExitHow, Notice};
use crate::policy::Scheduling;
use crate::primary::{Action, Config, Rebalanced};
use crate::wire::incoming::parse;

/// What even shares are for so many connections, all workers being of the same weight.
fn even(open: &[u32]) -> Vec<(u32, u32)> {
    let counts: Vec<_> = open.iter().map(|open| (WorkerId(1), *open, 100)).collect();
    even_shares(&counts)
}

#[test]
fn a_new_worker_gets_its_share() {
    assert_eq!(even(&[20, 20, 0, 0]), [(10, 0), (10, 0), (0, 10), (0, 10)]);
    assert_eq!(even(&[30, 0]), [(15, 0), (0, 15)]);
}

#[test]
fn shares_go_by_weight() {
    let shares = even_shares(&[(WorkerId(1), 30, 100), (WorkerId(2), 30, 200)]);
    assert_eq!(shares, [(10, 0), (0, 10)]);
}

#[test]
fn a_worker_with_most_of_few_connections_shares_them_with_all_others() {
    let [first, others @ ..] = &even(&[8, 1, 1, 1, 1, 1, 1, 1])[..] else { unreachable!() };
    assert_eq!(*first, (6, 0));
    assert_eq!(others.iter().map(|(_, lack)| lack).sum::<u32>(), 6);
    assert!(others.iter().all(|(_, lack)| *lack <= 1), "{others:?}");
}

#[test]
fn small_differences_stay() {
    for open in [&[3, 1][..], &[1, 0], &[100, 96, 104], &[0, 0], &[5]] {
        assert!(even(open).iter().all(|share| *share == (0, 0)), "{open:?}");
    }
}

proptest! {
    #[test]
    fn what_is_returned_has_a_place_and_makes_no_share_uneven(
        workers in prop::collection::vec((prop_oneof![0u32..5000, any::<u32>()], 1u32..300), 0..9),
    ) {
        let counts: Vec<_> = workers.iter().map(|(open, weight)| (WorkerId(1), *open, *weight)).collect();
        let shares = even_shares(&counts);
        let returned: u64 = shares.iter().map(|(excess, _)| u64::from(*excess)).sum();
        let received: u64 = shares.iter().map(|(_, lack)| u64::from(*lack)).sum();
        prop_assert_eq!(returned, received);
        prop_assert!(returned <= MAX_MOVES.into());
        let total: u64 = workers.iter().map(|(open, _)| u64::from(*open)).sum();
        let weights: u64 = workers.iter().map(|(_, weight)| u64::from(*weight)).sum();
        for ((open, weight), (excess, lack)) in workers.iter().zip(&shares) {
            let share = total * u64::from(*weight);
            prop_assert!(*excess == 0 || *lack == 0);
            prop_assert!(excess == &0 || u64::from(open - excess) * weights >= share);
            prop_assert!(lack == &0 || u64::from(open + lack - 1) * weights < share);
        }
        // Everything above a share has a place, if anything moves.
        let above = |(open, weight): &(u32, u32)| {
            u64::from(*open).saturating_sub((total * u64::from(*weight)).div_ceil(weights))
        };
        let all: u64 = workers.iter().map(above).sum();
        prop_assert!(returned == 0 || returned == all.min(MAX_MOVES.into()));
    }
}

/// A primary with troop workers on one listener.
struct Cluster {
    primary: Primary,
    now: Time,
    sent: Vec<(WorkerId, String)>,
    delivered: Vec<(WorkerId, ConnId)>,
}

impl Cluster {
    fn start(scheduling: &str, workers: u32) -> Cluster {
        Cluster::of(
            Config { scheduling: scheduling.parse().unwrap(), ..Config::default() },
            workers,
        )
    }

    fn of(config: Config, workers: u32) -> Cluster {
        let primary = Primary::new(config);
        let mut cluster =
            Cluster { primary, now: Time(1), sent: Vec::new(), delivered: Vec::new() };
        for _ in 0..workers {
            cluster.join();
        }
        cluster
    }

    fn join(&mut self) -> WorkerId {
        let worker = self.primary.fork();
        self.primary.spawned(worker, worker.0, None, 100);
        for line in [
            r#"{"cmd":"NODE_CLUSTER","act":"online","troop":1,"seq":0}"#,
            r#"{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"address":null,"port":80,"addressType":4}"#,
            r#"{"cmd":"NODE_CLUSTER","act":"listening","seq":2,"address":null,"port":80,"addressType":4}"#,
        ] {
            self.say(worker, line);
        }
        worker
    }

    fn say(&mut self, worker: WorkerId, line: &str) {
        self.primary.message(self.now, worker, parse(line.as_bytes()).unwrap());
        self.act();
    }

    fn counted(&mut self, worker: WorkerId, open: u32) {
        let key = self.key();
        self.say(
            worker,
            &format!(r#"{{"cmd":"NODE_TROOP","act":"counted","key":{key:?},"open":{open}}}"#),
        );
    }

    fn key(&self) -> String {
        self.primary.listener_key(ListenerId(1)).unwrap().to_owned()
    }

    fn act(&mut self) {
        while let Some(action) = self.primary.next_action() {
            match action {
                Action::Bind { listener, .. } => self.primary.bound(self.now, listener, Ok(None)),
                Action::Send { worker, line } => {
                    self.sent.push((worker, String::from_utf8(line).unwrap()));
                }
                Action::Deliver { worker, conn, .. } => self.delivered.push((worker, conn)),
                Action::Notify(Notice::Misbehaved { violation, .. }) => panic!("{violation:?}"),
                _ => {}
            }
        }
    }

    /// Lets time pass, and returns what was asked of workers.
    fn pass(&mut self, time: Duration) -> Vec<(WorkerId, String)> {
        let end = self.now + time;
        self.sent.clear();
        while let Some(at) = self.primary.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.primary.tick(self.now);
            self.act();
        }
        self.now = end;
        self.asked()
    }

    fn asked(&mut self) -> Vec<(WorkerId, String)> {
        let asked = std::mem::take(&mut self.sent).into_iter();
        let own = |line: &str| line.contains(r#""act":"count""#) || line.contains("rebalance");
        asked.filter(|(_, line)| own(line)).collect()
    }

    /// Has all workers count, and returns how many connections each is asked for.
    fn round(&mut self, open: &[(WorkerId, u32)]) -> Vec<(WorkerId, u32)> {
        for (worker, open) in open {
            self.counted(*worker, *open);
        }
        let asked = self.pass(Duration::ZERO);
        let count = |line: &str| {
            line.split_once(r#""count":"#).unwrap().1.trim_end_matches("}\n").parse().unwrap()
        };
        asked.into_iter().map(|(worker, line)| (worker, count(&line))).collect()
    }

    /// A worker returns a connection, which is dispatched to another one.
    fn returns(&mut self, worker: WorkerId, conn: u32) -> Option<WorkerId> {
        let id = self.primary.may_move(worker, &self.key()).unwrap()?;
        assert!(self.primary.moved(worker));
        self.primary.rebalanced(self.now, id, ConnId(conn), Connection::new(None, None));
        self.act();
        self.delivered.last().map(|(worker, _)| *worker)
    }
}

#[test]
fn connections_go_from_workers_with_many_to_a_new_one() {
    let mut cluster = Cluster::start("round-robin", 2);
    let [a, b] = [WorkerId(1), WorkerId(2)];
    assert_eq!(cluster.pass(JOIN_DELAY).len(), 2, "both count");
    assert_eq!(cluster.round(&[(a, 30), (b, 30)]), []);
    let c = cluster.join();
    assert_eq!(cluster.pass(JOIN_DELAY).len(), 3, "all count");
    assert_eq!(cluster.round(&[(a, 30), (b, 30), (c, 0)]), [(a, 10), (b, 10)]);
    for conn in 0..20 {
        assert_eq!(cluster.returns(if conn % 2 == 0 { a } else { b }, conn), Some(c));
    }
    cluster.answers(c, true);
    let key = cluster.key();
    assert!(cluster.primary.may_move(a, &key).is_err(), "it was asked for no more");
    assert_eq!(cluster.pass(ROUND_INTERVAL).len(), 3, "all count again");
    assert_eq!(cluster.round(&[(a, 20), (b, 20), (c, 20)]), []);
    assert_eq!(cluster.pass(INTERVAL * 2), [], "even shares are left alone");
}

#[test]
fn weights_count_where_the_policy_goes_by_them() {
    for (here, asked) in [("weighted", 15), ("round-robin", 10)] {
        let scheduling = [("80", here), ("81", "weighted")];
        let listeners = scheduling.map(|(at, name)| (at.parse().unwrap(), name.parse().unwrap()));
        let mut cluster =
            Cluster::of(Config { listeners: listeners.to_vec(), ..Config::default() }, 2);
        let [a, b] = [WorkerId(1), WorkerId(2)];
        cluster.primary.set_weight(cluster.now, b, 300);
        cluster.pass(JOIN_DELAY);
        assert_eq!(cluster.round(&[(a, 20), (b, 0)]), [(a, asked)], "{here}");
    }
}

#[test]
fn a_connection_that_is_returned_too_late_stays_where_it_is() {
    let mut cluster = Cluster::start("round-robin", 2);
    cluster.pass(JOIN_DELAY);
    let [a, b] = [WorkerId(1), WorkerId(2)];
    assert_eq!(cluster.round(&[(a, 20), (b, 0)]), [(a, 10)]);
    cluster.pass(ROUND_INTERVAL);
    cluster.round(&[(a, 10), (b, 10)]);
    assert_eq!(cluster.returns(a, 1), None);
}

#[test]
fn a_worker_that_was_not_asked_returns_nothing() {
    let mut cluster = Cluster::start("round-robin", 2);
    let key = cluster.key();
    assert!(cluster.primary.may_move(WorkerId(1), &key).is_err());
}

#[test]
fn a_worker_that_does_not_count_holds_up_nobody_and_gets_nothing() {
    let mut cluster = Cluster::start("round-robin", 3);
    cluster.pass(JOIN_DELAY);
    cluster.counted(WorkerId(1), 20);
    cluster.counted(WorkerId(2), 0);
    let asked = cluster.pass(COUNT_TIMEOUT);
    assert!(
        matches!(&asked[..], [(WorkerId(1), line)] if line.contains(r#""count":10"#)),
        "{asked:?}"
    );
    for conn in 0..10 {
        assert_eq!(cluster.returns(WorkerId(1), conn), Some(WorkerId(2)));
    }
}

#[test]
fn a_worker_with_many_whose_connections_cannot_move_is_asked_ever_more_rarely() {
    let mut cluster = Cluster::of(Config { hang_timeout: None, ..Config::default() }, 2);
    let mut rounds = 0;
    for _ in 0..3600 {
        if !cluster.pass(Duration::from_secs(1)).is_empty() {
            rounds += 1;
            cluster.counted(WorkerId(1), 50);
            cluster.counted(WorkerId(2), 0);
            cluster.pass(Duration::ZERO);
        }
    }
    assert!((3..15).contains(&rounds), "{rounds}");
}

#[test]
fn nothing_moves_where_clients_have_workers_or_it_is_turned_off() {
    let off = Config { rebalance: Rebalanced::None, ..Config::default() };
    let elsewhere =
        Config { rebalance: Rebalanced::Only(vec!["81".parse().unwrap()]), ..Config::default() };
    let of = |scheduling: &str| {
        let scheduling: Scheduling = scheduling.parse().unwrap();
        Config { scheduling, ..Config::default() }
    };
    for config in [off, elsewhere, of("sticky"), of("sticky:cookie=id"), of("shared")] {
        let mut cluster = Cluster::of(config, 3);
        assert_eq!(cluster.pass(INTERVAL * 3), []);
    }
    let here =
        Config { rebalance: Rebalanced::Only(vec!["80".parse().unwrap()]), ..Config::default() };
    assert_eq!(Cluster::of(here, 2).pass(JOIN_DELAY).len(), 2);
}

#[test]
fn a_lacking_worker_that_has_died_is_replaced_by_the_policys_choice() {
    let mut cluster = Cluster::start("round-robin", 3);
    cluster.pass(JOIN_DELAY);
    let [a, b, c] = [WorkerId(1), WorkerId(2), WorkerId(3)];
    assert_eq!(cluster.round(&[(a, 20), (b, 20), (c, 0)]), [(a, 6), (b, 6)]);
    let key = cluster.key();
    let id = cluster.primary.may_move(a, &key).unwrap().unwrap();
    cluster.primary.exited(cluster.now, c, ExitHow::Code(1));
    cluster.act();
    assert!(cluster.primary.moved(a));
    cluster.primary.rebalanced(cluster.now, id, ConnId(1), Connection::new(None, None));
    cluster.act();
    assert!(matches!(cluster.delivered[..], [(worker, ConnId(1))] if worker != c));
    assert_eq!(cluster.returns(a, 2), None, "those that have not left yet stay");
}

#[test]
fn nothing_is_asked_for_where_clients_have_got_workers_since_the_count() {
    let mut cluster = Cluster::start("round-robin", 2);
    cluster.pass(JOIN_DELAY);
    let [a, b] = [WorkerId(1), WorkerId(2)];
    cluster.counted(a, 20);
    cluster.primary.set_scheduling(cluster.now, None, "sticky".parse().unwrap());
    assert_eq!(cluster.round(&[(b, 0)]), []);
}

/// A cluster in which the first of two workers was asked for 10 of its 20 connections.
fn uneven(config: Config) -> (Cluster, [WorkerId; 2]) {
    let (mut cluster, workers) = (Cluster::of(config, 2), [WorkerId(1), WorkerId(2)]);
    cluster.pass(JOIN_DELAY);
    assert_eq!(cluster.round(&[(workers[0], 20), (workers[1], 0)]), [(workers[0], 10)]);
    (cluster, workers)
}

#[test]
fn a_connection_waits_for_its_new_worker_while_that_one_has_many_under_way() {
    let (mut cluster, [a, b]) = uneven(Config { troop_window: 2, ..Config::default() });
    for conn in 0..5 {
        cluster.returns(a, conn);
    }
    assert_eq!(cluster.delivered, [(b, ConnId(0)), (b, ConnId(1))], "the others wait");
    cluster.answers(b, true);
    assert_eq!(cluster.delivered[2..], [(b, ConnId(2)), (b, ConnId(3))]);
}

#[test]
fn connections_stay_where_they_are_while_nobody_who_lacks_some_can_take_them() {
    let (mut cluster, [a, b]) = uneven(Config::default());
    cluster.primary.set_blocked(cluster.now, b, true);
    assert_eq!(cluster.returns(a, 0), None);
    cluster.primary.set_blocked(cluster.now, b, false);
    assert_eq!(cluster.returns(a, 1), Some(b));
}

impl Cluster {
    /// A worker takes what it was handed, or gives it back.
    fn answers(&mut self, worker: WorkerId, takes: bool) {
        let seqs: Vec<u64> = self.primary.in_flight(worker).map(|(seq, _)| seq).collect();
        let mut line = Vec::new();
        let (taken, returned) = if takes { (&seqs[..], &[][..]) } else { (&[][..], &seqs[..]) };
        outgoing::taken(&mut line, taken, returned, None);
        self.say(worker, std::str::from_utf8(&line).unwrap());
    }
}

#[test]
fn a_worker_that_rejects_a_connection_gets_no_more_of_others_in_that_round() {
    let (mut cluster, [a, b]) = uneven(Config::default());
    assert_eq!(cluster.returns(a, 0), Some(b));
    cluster.answers(b, false);
    assert_eq!(cluster.delivered.last(), Some(&(a, ConnId(0))));
    cluster.pass(Duration::from_millis(600));
    assert_eq!(cluster.returns(a, 1), None, "also after its pause");
}

#[test]
fn a_worker_that_rejects_connections_is_offered_some_ever_more_rarely() {
    let mut cluster = Cluster::of(Config { hang_timeout: None, ..Config::default() }, 2);
    let [a, b] = [WorkerId(1), WorkerId(2)];
    let mut moved = 0;
    for second in 0..3600 {
        if !cluster.pass(Duration::from_secs(1)).is_empty() {
            let asked = cluster.round(&[(a, 20), (b, 5)]);
            for conn in 0..asked.first().map_or(0, |(_, count)| *count) {
                moved += u32::from(cluster.returns(a, second * 100 + conn).is_some());
                cluster.answers(b, false);
            }
        }
    }
    assert!((1..15).contains(&moved), "{moved}");
}

#[test]
fn connections_on_their_way_to_a_worker_count_as_its_own() {
    let (mut cluster, [a, b]) = uneven(Config { recall_after: INTERVAL, ..Config::default() });
    for conn in 0..10 {
        assert_eq!(cluster.returns(a, conn), Some(b));
    }
    assert_eq!(cluster.pass(ROUND_INTERVAL).len(), 2, "both count");
    assert_eq!(cluster.round(&[(a, 10), (b, 0)]), [], "its program accepts none just now");
}

#[test]
fn no_more_connections_come_at_a_time_than_have_a_place() {
    let mut cluster = Cluster::of(Config::default(), 3);
    cluster.pass(JOIN_DELAY);
    let [a, b, c] = [WorkerId(1), WorkerId(2), WorkerId(3)];
    assert_eq!(cluster.round(&[(a, 9), (b, 1), (c, 2)]), [(a, 5)]);
    assert_eq!(cluster.returns(a, 0), Some(b));
    cluster.answers(b, false);
    // `c` still lacks two.
    let key = cluster.key();
    let allowed = (0..4).filter(|_| cluster.primary.may_move(a, &key).unwrap().is_some());
    assert_eq!(allowed.count(), 2);
}
