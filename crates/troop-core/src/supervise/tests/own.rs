//! Workers that listen by themselves.

use std::collections::BTreeMap;

use super::*;
use crate::event::{Address, AddressType};

fn tcp(host: &str, port: i64) -> OwnAddress {
    let is_ipv6 = host.contains(':');
    let address_type = if is_ipv6 { AddressType::Tcp6 } else { AddressType::Tcp4 };
    let at = Address { address: Some(host.into()), port: Some(port), address_type, fd: None };
    OwnAddress { at, may_be_chosen: port >= 32768 }
}

fn own(port: i64) -> OwnAddress {
    tcp("127.0.0.1", port)
}

fn path(path: &str) -> OwnAddress {
    let (address, port) = (Some(path.to_owned()), Some(-1));
    let at = Address { address, port, address_type: AddressType::Unix, fd: None };
    OwnAddress { at, may_be_chosen: true }
}

fn in_use(port: i64) -> String {
    format!("listen EADDRINUSE: address already in use 127.0.0.1:{port}")
}

/// Workers without Node's protocol, and where they listen.
struct Listening {
    w: Simulation,
    at: BTreeMap<u32, Vec<OwnAddress>>,
    words: BTreeMap<u32, String>,
    is_hidden: bool,
    answers: bool,
    inspections: usize,
}

impl Listening {
    fn new(workers: usize, change: impl FnOnce(&mut Config)) -> Listening {
        let config = changed(Config::new(workers), |config| {
            config.replace.min_ready_time = Duration::ZERO;
            config.sees_own = true;
            change(config);
        });
        let (at, words) = (BTreeMap::new(), BTreeMap::new());
        let w = Simulation::with(config);
        Listening { w, at, words, is_hidden: false, answers: true, inspections: 0 }
    }

    /// Those with these numbers listen there from now on.
    fn listen(&mut self, workers: impl IntoIterator<Item = u32>, at: &[OwnAddress]) {
        workers.into_iter().for_each(|worker| drop(self.at.insert(worker, at.to_vec())));
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 20 {
            self.w.pass(SECOND / 20);
            self.answer();
        }
    }

    fn answer(&mut self) {
        let is_inspection = |order: &Order| matches!(order, Order::InspectListeners { .. });
        let Some(at) = self.w.asked.iter().position(is_inspection).filter(|_| self.answers) else {
            return;
        };
        let Order::InspectListeners { words_of } = self.w.asked.remove(at) else { return };
        self.inspections += 1;
        let see = |worker: u32| WorkerSeen {
            worker: WorkerId(worker),
            seen: match self.is_hidden {
                true => Seen::Hidden,
                false => Seen::Listens(self.at.get(&worker).cloned().unwrap_or_default()),
            },
            words: self
                .words
                .get(&worker)
                .filter(|_| words_of.contains(&WorkerId(worker)))
                .cloned(),
        };
        let inspection = OwnInspection {
            workers: (1..=self.w.next_worker).map(see).collect(),
            took: SECOND / 1000,
        };
        self.w.supervisor.listeners_inspected(self.w.now, &inspection);
        self.w.carry_out();
    }

    fn reload(&mut self) {
        self.w.supervisor.reload(self.w.now);
        self.w.carry_out();
    }

    fn ready(&self) -> Vec<u32> {
        let ready = |worker: &u32| {
            self.w
                .supervisor
                .standing(self.w.now, WorkerId(*worker))
                .is_some_and(|(ready, _)| ready)
        };
        (1..=self.w.next_worker).filter(ready).collect()
    }

    fn failure(&self) -> Option<&str> {
        self.w.progress.iter().rev().find_map(|progress| match progress {
            Progress::ReloadFailed { reason, .. } | Progress::RecycleFailed { reason, .. } => {
                Some(reason.as_str())
            }
            _ => None,
        })
    }

    fn not_shared(&self) -> Vec<(u32, u32)> {
        let of = |order: &Order| match order {
            Order::NotShared { worker, holder, .. } => Some((worker.0, holder.0)),
            _ => None,
        };
        self.w.asked.iter().filter_map(of).collect()
    }
}

#[test]
fn a_new_worker_takes_over_only_where_it_listens_by_itself_as_its_predecessor_does() {
    let mut l = Listening::new(1, |_| {});
    l.listen([1], &[own(80)]);
    l.pass(2);
    assert_eq!(l.ready(), [1]);
    l.reload();
    l.pass(29);
    assert_eq!((l.ready(), l.failure()), (vec![1], None));
    let awaiting = |p: &&Progress| matches!(p, Progress::Awaiting { worker: WorkerId(2), .. });
    assert_eq!(l.w.progress.iter().filter(awaiting).count(), 1);
    l.pass(2);
    let why = l.failure().unwrap().to_owned();
    assert!(why.starts_with("worker 2 does not listen on 127.0.0.1:80, as worker 1 does"), "{why}");
    assert!(why.contains("max_surge = 0") && why.contains("--allow-moved"), "{why}");
    assert_eq!((l.ready(), l.w.of(0)), (vec![1], 1));
    l.w.exit(2, 0);
    // One that listens elsewhere, and then there too.
    l.reload();
    l.listen([3], &[own(81)]);
    l.pass(20);
    assert_eq!((l.ready(), l.w.of(0)), (vec![1], 1));
    l.listen([3], &[own(81), tcp("0.0.0.0", 80)]);
    l.pass(3);
    assert_eq!((l.ready(), l.w.of(0)), (vec![3], 3));
    l.w.exit(1, 0);
    // The same when one is recycled.
    l.w.supervisor.recycle(l.w.now, WorkerId(3), "age".into());
    l.w.carry_out();
    l.listen([4], &[own(81)]);
    l.pass(31);
    let why = l.failure().unwrap();
    assert!(why.contains("worker 4 does not listen on 0.0.0.0:80, but on 127.0.0.1:81"), "{why}");
    assert!(!why.contains("--allow-moved"), "{why}");
    assert_eq!(l.w.of(0), 3);
}

#[test]
fn a_reload_fails_at_once_where_the_new_worker_says_that_the_port_is_in_use() {
    let mut l = Listening::new(1, |_| {});
    l.listen([1], &[path("/run/app.ctl"), own(80)]);
    l.pass(2);
    for (words, after) in [(in_use(80), 1), (in_use(8080), 30), ("hello".into(), 30)] {
        l.reload();
        let new = l.w.next_worker;
        l.words.insert(new, words.clone());
        l.pass(after - 1);
        let before = l.w.supervisor.state();
        l.pass(1);
        let why = l.failure().unwrap();
        assert_eq!(before, SupervisorState::Reloading, "{words}");
        assert_eq!(l.w.supervisor.state(), SupervisorState::Running, "{words}");
        assert_eq!(why.contains("it says that an address is in use"), words != "hello", "{why}");
        assert!(why.starts_with(&format!("worker {new} does not listen")), "{why}");
        l.w.exit(new, 0);
    }
    assert_eq!(l.ready(), [1]);
}

#[test]
fn a_worker_that_leaves_first_gives_its_port_to_its_successor_which_must_take_it() {
    let mut l = Listening::new(1, |config| {
        (config.replace.max_surge, config.replace.max_unavailable) = (0, 1);
    });
    l.listen([1], &[own(80)]);
    l.pass(2);
    l.reload();
    l.w.exit(1, 0);
    l.listen([2], &[own(80)]);
    l.pass(2);
    assert_eq!((l.ready(), l.failure()), (vec![2], None));
    assert_eq!(l.w.progress.last(), Some(&Progress::ReloadFinished));
    l.reload();
    l.w.exit(2, 0);
    l.listen([3], &[own(81)]);
    l.pass(31);
    let why = l.failure().unwrap();
    assert!(why.contains("80, but on 127.0.0.1:81, as worker 2 did by itself"), "{why}");
    // As with PM2's restart it may be another one, but not none.
    let mut l = Listening::new(1, |config| config.replace.make_way_unless_listening = true);
    l.listen([1], &[own(80)]);
    l.pass(2);
    l.reload();
    l.w.exit(1, 0);
    l.pass(10);
    assert!(l.ready().is_empty());
    l.listen([2], &[own(81)]);
    l.pass(2);
    assert_eq!((l.ready(), l.failure()), (vec![2], None));
}

#[test]
fn workers_may_listen_elsewhere_where_a_reload_permits_it_and_somewhere_when_it_is_taken_back() {
    let mut l = Listening::new(1, |_| {});
    l.listen([1], &[own(80)]);
    l.pass(2);
    l.w.supervisor.allow_moved(true);
    l.reload();
    l.pass(2);
    assert_eq!((l.ready(), l.failure(), l.w.of(0)), (vec![2], None, 2));
    l.w.exit(1, 0);
    // It holds for that one alone.
    l.listen([2], &[own(80)]);
    l.pass(2);
    l.reload();
    l.pass(2);
    assert_eq!(l.w.of(0), 2);
    l.listen([3], &[own(80)]);
    l.pass(2);
    assert_eq!(l.w.of(0), 3);
    l.w.exit(2, 0);
    l.w.supervisor.roll_back(l.w.now);
    l.w.carry_out();
    l.pass(10);
    assert_eq!(l.w.of(0), 3, "it listens nowhere");
    l.listen([4], &[own(79)]);
    l.pass(3);
    assert_eq!(l.w.of(0), 4);
}

#[test]
fn programs_that_listen_nowhere_and_those_that_cannot_be_seen_are_not_held_up() {
    for is_hidden in [false, true] {
        let mut l = Listening::new(2, |_| {});
        l.is_hidden = is_hidden;
        if is_hidden {
            l.listen([1, 3, 4], &[own(80)]);
        }
        l.pass(1);
        l.w.pass(SECOND / 10);
        assert_eq!(l.ready(), [1, 2]);
        l.pass(200);
        assert!(l.inspections <= 12, "{} inspections", l.inspections);
        l.reload();
        l.pass(3);
        assert_eq!((l.ready(), l.failure()), (vec![3, 4], None));
        assert_eq!(l.not_shared(), []);
    }
    // Nor are others, if nobody inspections.
    let mut l = Listening::new(1, |_| {});
    l.answers = false;
    l.pass(10);
    assert!(l.ready().is_empty());
    l.pass(2);
    assert_eq!(l.ready(), [1]);
}

#[test]
fn ports_and_paths_that_are_chosen_anew_are_not_compared_with_those_before() {
    let mut l = Listening::new(2, |_| {});
    l.listen([1], &[own(40_000), path("/tmp/1.pipe")]);
    l.listen([2], &[own(40_001), path("/tmp/2.pipe")]);
    l.pass(2);
    l.reload();
    l.listen([3], &[own(50_000), path("/tmp/3.pipe")]);
    l.listen([4], &[own(50_001)]);
    l.pass(3);
    assert_eq!(l.ready(), [2, 3], "the last one has no path");
    l.listen([4], &[own(50_001), path("/tmp/4.pipe")]);
    l.pass(2);
    assert_eq!((l.ready(), l.failure()), (vec![3, 4], None));
}

#[test]
fn ports_of_the_slot_alone_are_its_successors() {
    let mut l = Listening::new(2, |_| {});
    l.listen([1], &[own(3000)]);
    l.listen([2], &[own(3001)]);
    l.pass(2);
    assert_eq!((l.ready(), l.not_shared()), (vec![1, 2], vec![]));
    l.reload();
    l.listen([3], &[own(3000)]);
    l.listen([4], &[own(3001)]);
    l.pass(4);
    assert_eq!((l.ready(), l.failure()), (vec![3, 4], None));
}

/// As `tsx watch` does, whose server is a process that it starts.
#[test]
fn a_worker_that_listens_on_a_path_of_its_own_must_also_listen_where_its_predecessor_does() {
    let mut l = Listening::new(1, |_| {});
    let up = |l: &mut Listening, worker: u32| {
        l.w.supervisor.listens_privately(WorkerId(worker), true);
        l.w.up(worker);
        l.answer();
    };
    up(&mut l, 1);
    l.pass(1);
    l.listen([1], &[own(80), path("/run/app.ctl")]);
    l.pass(4);
    assert_eq!(l.ready(), [1]);
    for (words, after) in [(in_use(80), 1), ("hello".into(), 31)] {
        l.reload();
        let new = l.w.next_worker;
        l.words.insert(new, words);
        up(&mut l, new);
        l.pass(after);
        let why = l.failure().unwrap();
        assert!(
            why.starts_with(&format!("worker {new} does not listen on 127.0.0.1:80,")),
            "{why}"
        );
        assert_eq!((l.ready(), l.w.of(0)), (vec![1], 1));
        l.w.exit(new, 0);
    }
    l.reload();
    l.listen([4], &[own(80), path("/run/app.ctl")]);
    up(&mut l, 4);
    l.pass(1);
    assert_eq!(l.w.of(0), 4);
    // One that serves clients by way of the primary is ready when it does.
    l.w.exit(1, 0);
    l.pass(1);
    l.reload();
    l.w.up(5);
    assert_eq!(l.w.of(0), 5);
    // Where that is wanted, the old one leaves first.
    let mut l = Listening::new(1, |config| config.replace.make_way_unless_listening = true);
    up(&mut l, 1);
    l.reload();
    assert!(l.w.progress.contains(&Progress::MakingWay { worker: WorkerId(1) }));
}

#[test]
fn what_a_worker_opens_later_is_not_asked_of_its_successor() {
    let mut l = Listening::new(1, |_| {});
    l.listen([1], &[own(80), own(81)]);
    l.pass(70);
    // A debugger; and it has closed something.
    l.listen([1], &[own(80), own(9229)]);
    l.reload();
    l.listen([2], &[own(80)]);
    l.pass(2);
    assert_eq!((l.ready(), l.failure()), (vec![2], None));
}

#[test]
fn at_a_start_a_worker_that_says_its_port_is_in_use_is_not_ready_and_that_is_told_once() {
    let mut l = Listening::new(2, |_| {});
    l.listen([1], &[own(80)]);
    l.words.insert(2, in_use(80));
    let ready = l.w.request(Request::Ready);
    l.pass(100);
    assert_eq!((l.ready(), l.not_shared()), (vec![1], vec![(2, 1)]));
    assert_eq!(l.w.answer(ready), None);
    assert!(l.inspections < 120, "{} inspections", l.inspections);
    // It is ended as others that are never ready.
    l.pass(30);
    let ended = Progress::NotReady { worker: WorkerId(2), within: 120 * SECOND };
    assert!(l.w.progress.contains(&ended), "{:?}", l.w.progress);
    assert!(l.w.asked.contains(&Order::Terminate(WorkerId(2))));
}

#[test]
fn a_worker_that_ends_without_the_port_of_another_one_has_not_been_ready() {
    let mut l = Listening::new(2, |_| {});
    l.listen([1], &[own(80)]);
    for worker in 2..5 {
        l.words.insert(worker, in_use(80));
        l.pass(6);
        assert_eq!(l.ready(), [1]);
        l.w.exit(worker, 1);
        let vacant: Vec<_> = l.w.supervisor.vacancies().map(|vacancy| vacancy.quick_ends).collect();
        assert_eq!(vacant, [worker - 1]);
        l.pass(2);
    }
}

#[test]
fn a_worker_that_may_be_meant_to_listen_nowhere_is_ready_later_and_its_successors_at_once() {
    let mut l = Listening::new(2, |_| {});
    l.listen([1], &[own(80)]);
    l.pass(10);
    assert_eq!((l.ready(), l.not_shared()), (vec![1], vec![(2, 1)]));
    l.pass(2);
    assert_eq!((l.ready(), l.w.supervisor.state()), (vec![1, 2], SupervisorState::Running));
    l.pass(10);
    l.w.exit(2, 1);
    l.pass(2);
    assert_eq!((l.ready(), l.not_shared().len()), (vec![1, 3], 1));
    // Also where the other one was slower to listen.
    let mut l = Listening::new(2, |_| {});
    l.pass(5);
    l.listen([1], &[own(80)]);
    l.pass(100);
    l.w.exit(2, 1);
    l.pass(2);
    assert_eq!((l.ready(), l.not_shared().len()), (vec![1, 3], 0));
}

#[test]
fn a_worker_that_finds_its_port_taken_late_is_not_ready_any_more() {
    let mut l = Listening::new(2, |_| {});
    l.pass(3);
    assert_eq!(l.ready(), [1, 2]);
    l.listen([1], &[own(80)]);
    l.words.insert(2, in_use(80));
    l.pass(6);
    assert_eq!((l.ready(), l.not_shared()), (vec![1], vec![(2, 1)]));
}

#[test]
fn after_a_crash_a_worker_must_listen_somewhere_again_but_only_one_is_ended_for_it() {
    let mut l = Listening::new(1, |_| {});
    l.listen([1], &[own(80)]);
    l.pass(10);
    l.w.exit(1, 1);
    l.pass(10);
    assert_eq!((l.ready(), l.w.of(0)), (vec![], 2));
    // A program that has changed may listen elsewhere.
    l.listen([2], &[own(81)]);
    l.pass(2);
    assert_eq!(l.ready(), [2]);
    l.pass(10);
    l.w.exit(2, 1);
    l.pass(31);
    let ended = Progress::NotReady { worker: WorkerId(3), within: 30 * SECOND };
    assert!(l.w.progress.contains(&ended), "{:?}", l.w.progress);
    l.w.exit(3, 0);
    l.pass(3);
    assert_eq!(l.ready(), [4], "it may have become a program that listens nowhere");
}

#[test]
fn a_sibling_that_listens_nowhere_and_is_heard_to_say_nothing_is_ready_soon_and_told_of() {
    for (is_heard, seconds) in [(true, 5), (false, 12)] {
        let mut l = Listening::new(2, |_| {});
        if is_heard {
            l.words.insert(2, String::new());
        }
        l.listen([1], &[own(80)]);
        l.pass(seconds - 2);
        assert_eq!(l.ready(), [1], "{is_heard}");
        l.pass(2);
        assert_eq!(l.ready(), [1, 2], "{is_heard}");
        assert_eq!(l.not_shared(), [(2, 1)], "{is_heard}");
    }
    // One that says why it does not is not ready.
    let mut l = Listening::new(2, |_| {});
    l.words.insert(2, "Address already in use".into());
    l.listen([1], &[own(80)]);
    l.pass(20);
    assert_eq!((l.ready(), l.not_shared()), (vec![1], vec![(2, 1)]));
}

/// As gunicorn does.
#[test]
fn a_new_worker_whose_path_the_old_one_removes_at_its_end_is_started_once_more() {
    let at = path("/run/app.sock");
    for (is_reload, is_told) in [(true, false), (false, false), (true, true)] {
        let mut l = Listening::new(1, |config| {
            config.replace.ready_when =
                if is_told { ReadyWhen::Notified } else { config.replace.ready_when };
        });
        let up = |l: &mut Listening, worker: u32| {
            l.listen([worker], std::slice::from_ref(&at));
            l.w.supervisor.reported_ready(l.w.now, WorkerId(worker));
            l.w.carry_out();
            l.pass(2);
        };
        up(&mut l, 1);
        let request = if is_reload {
            Request::Reload(vec![])
        } else {
            let worker = WorkerId(1);
            Request::Recycle { worker, reason: "age".into(), claims: vec![] }
        };
        let ticket = l.w.request(request);
        up(&mut l, 2);
        // The old one has not ended.
        assert_eq!((l.w.of(0), l.w.answer(ticket)), (2, None));
        l.listen([2], &[]);
        l.w.exit(1, 0);
        l.pass(1);
        let (old, worker) = (WorkerId(1), WorkerId(2));
        let removed = Progress::PathRemoved { old, worker, at: at.at.clone() };
        assert_eq!((l.w.of(0), l.w.progress.last()), (0, Some(&removed)));
        l.w.exit(2, 0);
        up(&mut l, 3);
        l.pass(2);
        assert_eq!(l.ready(), [3]);
        let started_again = vec![at.at.clone()];
        let done = Reloaded { replaced: 1, started_again, ..Reloaded::default() };
        let expected = match is_reload {
            true => Answer::Reload(Ok(done)),
            false => Answer::Recycle(Ok(WorkerId(3))),
        };
        assert_eq!(l.w.answer(ticket), Some(&expected));
    }
}

#[test]
fn a_path_that_stays_when_the_old_worker_ends_and_one_that_it_did_not_have_are_fine() {
    for (of_old, waits) in [("/run/app.sock", true), ("/run/1.sock", false)] {
        let mut l = Listening::new(1, |_| {});
        l.listen([1], &[path(of_old)]);
        l.pass(2);
        let ticket = l.w.request(Request::Reload(vec![]));
        l.listen([2], &[path("/run/app.sock")]);
        l.pass(2);
        assert_eq!((l.w.of(0), l.w.answer(ticket).is_none()), (2, waits), "{of_old}");
        l.w.exit(1, 0);
        l.pass(2);
        let done = Reloaded { replaced: 1, ..Reloaded::default() };
        assert_eq!(l.w.answer(ticket), Some(&Answer::Reload(Ok(done))));
        assert_eq!((l.w.of(0), l.ready()), (2, vec![2]));
    }
    // Nor is it waited for what cannot be seen.
    let mut l = Listening::new(1, |_| {});
    l.listen([1, 2], &[path("/run/app.sock")]);
    l.pass(2);
    let ticket = l.w.request(Request::Reload(vec![]));
    l.pass(2);
    l.answers = false;
    l.w.exit(1, 0);
    l.pass(9);
    assert!(l.w.answer(ticket).is_none());
    l.pass(2);
    assert!(matches!(l.w.answer(ticket), Some(Answer::Reload(Ok(_)))));
}
