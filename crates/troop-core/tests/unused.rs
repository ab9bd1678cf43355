//! Listeners that no worker has: open as long as somebody who is starting may ask for them, and
//! closed then.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod simulation;

use proptest::prelude::*;
use simulation::steps::*;
use simulation::{Input, Simulation, config, input};
use troop_core::event::{Address, AddressType};
use troop_core::primary::{Config, Successors};
use troop_core::supervise::Claim;

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(300)
    })]

    /// Whatever has happened: when nobody is to come and whoever was starting has had its time,
    /// every listener has a worker.
    #[test]
    fn no_listener_stays_open_that_nobody_will_ask_for(inputs in prop::collection::vec(input(), 0..120)) {
        let mut simulation = Simulation::new(Config { hang_timeout: None, ..config() });
        for input in inputs {
            simulation.happen(input)?;
        }
        simulation.happen(Input::Successors { which: 2 })?;
        simulation.happen(Input::Pass { ms: 31_000 })?;
        prop_assert!(!simulation.primary.has_unused());
        for id in simulation.primary.listeners() {
            prop_assert!(simulation.primary.listener_load(id).0 > 0, "nobody listens on {:?}", id);
        }
        // What waited there does not wait any more.
        prop_assert!(simulation.waiting.is_empty() || !simulation.listeners.is_empty());
    }

    /// The same where workers are supervised, and listeners outlive workers that close them by
    /// themselves.
    #[test]
    fn no_listener_of_supervised_workers_stays_open_that_nobody_will_ask_for(
        inputs in prop::collection::vec(input(), 0..120), keep_listeners in any::<bool>(),
    ) {
        let config = Config { hang_timeout: None, keep_listeners, ..config() };
        let mut simulation = Simulation::new(config);
        simulation.primary.set_supervised(true);
        for input in inputs {
            simulation.happen(input)?;
        }
        simulation.happen(Input::Successors { which: 2 })?;
        simulation.happen(Input::Pass { ms: 61_000 })?;
        prop_assert!(!simulation.primary.has_unused());
        for id in simulation.primary.listeners() {
            prop_assert!(simulation.primary.listener_load(id).0 > 0, "nobody listens on {:?}", id);
        }
    }

    /// While a successor is to come, only the program's own wish closes a listener.
    #[test]
    fn no_listener_closes_that_a_successor_may_ask_for(inputs in prop::collection::vec(input(), 0..120)) {
        let mut simulation = Simulation::new(config());
        simulation.primary.set_supervised(true);
        simulation.successors = Successors::Awaited;
        let mut most = 0;
        for input in inputs {
            let closes = |input: &Input| {
                matches!(input, Input::CloseUnused | Input::Close { .. } | Input::Disconnect { keep: false, .. }
                    | Input::Successors { .. } | Input::Query { fails: true, .. } | Input::Acknowledge { arrived: false, .. })
            };
            if !closes(&input) {
                simulation.happen(input)?;
                prop_assert!(simulation.listeners.len() >= most, "a listener was closed");
                most = simulation.listeners.len();
            }
        }
    }
}

#[test]
fn a_listener_that_only_the_last_slot_had_closes_at_once_when_that_goes() {
    let mut simulation = supervised();
    let (_, second) = (listening(&mut simulation, &[1]), listening(&mut simulation, &[1, 2]));
    pass(&mut simulation, 5_000);
    simulation.happen(Input::Accept { listener: 1 }).unwrap();
    assert_eq!(simulation.listeners.len(), 2);
    leaves(&mut simulation, second);
    assert_eq!((simulation.listeners.len(), simulation.closed.as_slice()), (1, &[0][..]));
}

#[test]
fn a_listener_of_a_dead_worker_closes_with_its_queue_once_the_successor_listens_elsewhere() {
    let mut simulation = supervised();
    let first = listening(&mut simulation, &[1]);
    pass(&mut simulation, 60_000);
    simulation.successors = Successors::Awaited;
    dies(&mut simulation, first);
    simulation.happen(Input::Accept { listener: 0 }).unwrap();
    pass(&mut simulation, 600_000);
    let second = starting(&mut simulation);
    simulation.successors = Successors::Nobody;
    // It is loaded slowly.
    pass(&mut simulation, 29_000);
    assert_eq!((simulation.listeners.len(), simulation.waiting.len()), (1, 1));
    listen(&mut simulation, second, &[2]);
    pass(&mut simulation, 2_900);
    assert_eq!(simulation.listeners.len(), 2, "it may ask for more");
    pass(&mut simulation, 100);
    assert_eq!((simulation.listeners.len(), simulation.closed.as_slice()), (1, &[1][..]));
    assert!(simulation.waiting.is_empty() && simulation.open.is_empty());
}

#[test]
fn a_successor_that_asks_late_for_its_second_listener_finds_it_and_its_clients() {
    let mut simulation = supervised();
    let first = listening(&mut simulation, &[1, 2]);
    pass(&mut simulation, 60_000);
    dies_and_returns(&mut simulation, first, &[1]);
    simulation.happen(Input::Accept { listener: 1 }).unwrap();
    pass(&mut simulation, 2_000);
    let second = *simulation.workers.keys().last().unwrap();
    listen(&mut simulation, second, &[2]);
    assert!(simulation.closed.is_empty() && simulation.waiting.is_empty());
    assert_eq!(simulation.listeners.len(), 2);
}

#[test]
fn workers_with_their_own_listeners_leave_none_behind_after_any_number_of_restarts() {
    let mut simulation = supervised();
    let _other = listening(&mut simulation, &[99]);
    let mut worker = listening(&mut simulation, &[100]);
    for port in 101..130 {
        worker = dies_and_returns(&mut simulation, worker, &[port]);
        pass(&mut simulation, 3_100);
        assert_eq!(simulation.listeners.len(), 2, "in life {port}");
    }
    // Also where they live shorter than they are waited for.
    for port in 130..200 {
        worker = dies_and_returns(&mut simulation, worker, &[port]);
        pass(&mut simulation, 100);
    }
    assert!(simulation.listeners.len() <= 66);
    pass(&mut simulation, 3_100);
    assert_eq!(simulation.listeners.len(), 2);
}

#[test]
fn without_a_supervisor_a_listener_waits_for_a_worker_that_is_forked_later() {
    let mut simulation = Simulation::new(patient());
    let (first, second) = (listening(&mut simulation, &[1]), listening(&mut simulation, &[2]));
    dies(&mut simulation, first);
    pass(&mut simulation, 600_000);
    assert_eq!(simulation.listeners.len(), 2, "whoever comes may ask for it");
    let third = starting(&mut simulation);
    pass(&mut simulation, 20_000);
    assert_eq!(simulation.listeners.len(), 2);
    listen(&mut simulation, third, &[2]);
    pass(&mut simulation, 3_100);
    assert_eq!(simulation.listeners.len(), 1);
    // Told to leave by the program, as in Node: nobody is to come.
    simulation.of_worker(second, Input::Disconnect { worker: 0, keep: false });
    simulation.of_worker(third, Input::Disconnect { worker: 0, keep: false });
    simulation.act().unwrap();
    assert!(simulation.listeners.is_empty());
}

#[test]
fn without_further_forks_listeners_close_after_a_moment() {
    let mut simulation = Simulation::new(patient());
    let first = listening(&mut simulation, &[1]);
    listening(&mut simulation, &[2]);
    pass(&mut simulation, 60_000);
    // Said before the program could know of the end.
    simulation.successors = Successors::Nobody;
    dies(&mut simulation, first);
    pass(&mut simulation, 2_900);
    assert_eq!(simulation.listeners.len(), 2);
    pass(&mut simulation, 200);
    assert_eq!(simulation.listeners.len(), 1);
}

#[test]
fn a_silent_worker_keeps_unused_listeners_open_for_a_limited_time() {
    let mut simulation = supervised();
    let first = listening(&mut simulation, &[1]);
    listening(&mut simulation, &[2]);
    // Without `online`.
    let silent = simulation.primary.fork();
    simulation.primary.spawned(silent, 4711, None, 100);
    dies(&mut simulation, first);
    pass(&mut simulation, 29_000);
    assert_eq!(simulation.listeners.len(), 2);
    pass(&mut simulation, 2_000);
    assert_eq!(simulation.listeners.len(), 1);
}

#[test]
fn a_socket_that_is_open_elsewhere_too_is_not_closed() {
    let mut simulation = supervised();
    let first = listening(&mut simulation, &[1]);
    listening(&mut simulation, &[2]);
    let listener = simulation.primary.listens_on(first).next().unwrap();
    simulation.primary.keep_open(listener);
    pass(&mut simulation, 10_000);
    leaves(&mut simulation, first);
    pass(&mut simulation, 60_000);
    assert_eq!((simulation.listeners.len(), simulation.closed.len()), (2, 0));
    simulation.end().unwrap();
}

#[test]
fn a_fixed_address_that_a_successor_does_not_take_over_is_missed_and_one_that_was_let_go_is_not() {
    let mut simulation = supervised();
    listening(&mut simulation, &[9]);
    let worker = listening(&mut simulation, &[1]);
    let next = dies_and_returns(&mut simulation, worker, &[2]);
    pass(&mut simulation, 3_100);
    assert_eq!((simulation.listeners.len(), simulation.missed.as_slice()), (2, &[Some(1)][..]));
    // Nobody comes in its place: fewer are wanted, or it has done what it was to do.
    leaves_for_good(&mut simulation, next);
    assert_eq!((simulation.listeners.len(), simulation.missed.len()), (1, 1));
    // What the kernel chose is nobody's loss, nor what a new generation has done without.
    let worker = listening(&mut simulation, &[0, 4]);
    simulation.successors = Successors::Awaited;
    dies(&mut simulation, worker);
    listening(&mut simulation, &[3]);
    simulation.primary.forget_shared();
    simulation.successors = Successors::Nobody;
    pass(&mut simulation, 3_100);
    assert_eq!((simulation.listeners.len(), simulation.missed.len()), (2, 1));
}

#[test]
fn a_worker_that_leaves_by_itself_keeps_its_listener_for_its_successor() {
    let mut simulation = supervised();
    listening(&mut simulation, &[9]);
    let worker = listening(&mut simulation, &[1]);
    pass(&mut simulation, 60_000);
    closes(&mut simulation, worker, 1);
    // It has connections to finish.
    pass(&mut simulation, 20_000);
    simulation.happen(Input::Accept { listener: 1 }).unwrap();
    simulation.of_worker(worker, Input::Goodbye { worker: 0 });
    pass(&mut simulation, 5_000);
    assert_eq!((simulation.listeners.len(), simulation.waiting.len()), (2, 1));
    // Its channel closes, its process ends, and its successor listens again.
    let next = dies_and_returns(&mut simulation, worker, &[1]);
    pass(&mut simulation, 60_000);
    assert!(
        simulation.closed.is_empty()
            && simulation.waiting.is_empty()
            && simulation.primary.listens_on(next).count() == 1
    );
}

#[test]
fn a_listener_that_a_running_worker_has_closed_closes_soon_and_is_not_missed() {
    for (ports, ms) in [(&[1, 2][..], 3_000), (&[1], 30_000)] {
        let mut simulation = supervised();
        listening(&mut simulation, &[9]);
        let worker = listening(&mut simulation, ports);
        pass(&mut simulation, 60_000);
        closes(&mut simulation, worker, 1);
        pass(&mut simulation, ms - 100);
        assert_eq!(simulation.listeners.len(), 1 + ports.len());
        pass(&mut simulation, 200);
        assert_eq!((simulation.listeners.len(), simulation.missed.len()), (ports.len(), 0));
    }
    // Where nobody is supervised it closes at once, as in Node.
    let mut simulation = Simulation::new(patient());
    let worker = listening(&mut simulation, &[1]);
    closes(&mut simulation, worker, 0);
    assert!(simulation.listeners.is_empty());
}

/// By itself, on sockets that are left to it: until it reads that it is to leave, and closes them.
#[test]
fn a_worker_may_accept_on_each_listener_that_it_has_not_closed_since_it_was_told_to_leave() {
    let mut simulation = Simulation::new(config());
    let worker = listening(&mut simulation, &[1, 2, 3]);
    // A port that it has only tried.
    closes(&mut simulation, worker, 0);
    let all: Vec<_> = simulation.primary.listens_on(worker).collect();
    let key = simulation.primary.listener_key(all[1]).unwrap().to_owned();
    let may = |simulation: &Simulation| {
        all.iter().map(|id| simulation.primary.may_still_accept(*id)).collect::<Vec<_>>()
    };
    assert_eq!(may(&simulation), [false; 2], "it serves them");
    simulation.primary.disconnect(worker, false, None);
    simulation.act().unwrap();
    assert_eq!((simulation.listeners.len(), may(&simulation)), (0, vec![true; 2]));
    simulation.say(worker, &format!(r#"{{"cmd":"NODE_CLUSTER","act":"close","key":"{key}"}}"#));
    assert_eq!(may(&simulation), [true, false]);
    dies(&mut simulation, worker);
    assert_eq!(may(&simulation), [false; 2]);
}

// ---- what successors have to take over ----

#[test]
fn addresses_of_workers_are_claimed_and_those_of_several_slots_are_shared() {
    let mut simulation = supervised();
    let first = listening(&mut simulation, &[1, 2]);
    assert_eq!(claims(&simulation, false), [(Some(1), 1, OWN), (Some(2), 1, OWN)]);
    listening(&mut simulation, &[1, 3]);
    assert_eq!(
        claims(&simulation, false),
        [(Some(1), 2, SHARED), (Some(2), 1, OWN), (Some(3), 1, OWN)]
    );
    // The only one's all are.
    assert_eq!(
        claims(&simulation, true),
        [(Some(1), 2, SHARED), (Some(2), 1, SHARED), (Some(3), 1, SHARED)]
    );
    // Also when one of them is just not there; its own waits for whoever comes.
    simulation.successors = Successors::Awaited;
    dies(&mut simulation, first);
    assert_eq!(
        claims(&simulation, false),
        [(Some(1), 1, SHARED), (Some(2), 0, OWN), (Some(3), 1, OWN)]
    );
}

#[test]
fn a_worker_and_its_successor_share_nothing() {
    let mut simulation = supervised();
    let worker = listening(&mut simulation, &[1]);
    let next = replacing(&mut simulation, worker);
    listen(&mut simulation, next, &[1]);
    assert_eq!(claims(&simulation, false), [(Some(1), 2, OWN)]);
}

#[test]
fn listeners_kept_for_successors_are_claimed_if_no_worker_serves() {
    let mut simulation = supervised();
    simulation.successors = Successors::Awaited;
    let all = [listening(&mut simulation, &[1, 2]), listening(&mut simulation, &[1])];
    all.iter().for_each(|worker| leaves(&mut simulation, *worker));
    assert_eq!(claims(&simulation, false), [(Some(1), 0, SHARED), (Some(2), 0, OWN)]);
    // A generation that has proven good without it begins anew.
    listening(&mut simulation, &[1]);
    simulation.primary.forget_shared();
    assert_eq!(claims(&simulation, false), [(Some(1), 1, OWN)]);
}

#[test]
fn listeners_of_a_failed_reload_are_neither_kept_nor_claimed() {
    let mut simulation = supervised();
    simulation.successors = Successors::Awaited;
    let old = listening(&mut simulation, &[1]);
    leaves(&mut simulation, old);
    let before: Vec<_> = simulation.primary.listeners().collect();
    let new = listening(&mut simulation, &[2]);
    leaves(&mut simulation, new);
    assert_eq!(claims(&simulation, true), [(Some(1), 0, SHARED), (Some(2), 0, SHARED)]);
    simulation.primary.close_unused_but(&before);
    simulation.act().unwrap();
    assert_eq!(
        (claims(&simulation, true), simulation.listeners.len()),
        (vec![(Some(1), 0, SHARED)], 1)
    );
}

#[test]
fn ports_chosen_by_the_kernel_and_paths_with_a_pid_are_not_claimed() {
    let mut simulation = supervised();
    let worker = starting(&mut simulation);
    let pid = simulation.primary.status(worker).unwrap().pid;
    // The world has no Unix sockets; these go to the primary alone.
    let names = [
        "/run/1/web",
        "/run/ps-{}.sock",
        "/run/{}/web",
        "/run/worker1.sock",
        "/run/ps-{}0.sock",
        "/run/web.sock",
        // By chance.
        "/tmp/.tmpX1y{}/web.sock",
    ];
    let mut seq = 1;
    for name in names.map(|name| name.replace("{}", &pid.to_string())) {
        seq += 1;
        for act in ["queryServer", "listening"] {
            let line = format!(
                r#"{{"cmd":"NODE_CLUSTER","act":"{act}","seq":{seq},"index":0,"address":"{name}","port":-1,"addressType":-1}}"#
            );
            simulation.say(worker, &line);
            while let Some(action) = simulation.primary.next_action() {
                if let troop_core::primary::Action::Bind { listener, .. } = action {
                    simulation.primary.bound(simulation.now, listener, Ok(None));
                }
            }
        }
    }
    let mut claimed: Vec<Claim> = simulation.primary.claims(true);
    // What may be named after it is claimed under the names of its successors too.
    claimed.retain(|claim| claim.named_after.is_none());
    let at = |name: String| Address {
        address: Some(name),
        port: Some(-1),
        address_type: AddressType::Unix,
        fd: None,
    };
    let claimed: Vec<Address> = claimed.into_iter().map(|claim| claim.at).collect();
    let by_chance = format!("/tmp/.tmpX1y{pid}/web.sock");
    let others = [format!("/run/ps-{pid}0.sock"), "/run/web.sock".into(), by_chance];
    assert_eq!(claimed, others.map(at));
    let mut simulation = supervised();
    listening(&mut simulation, &[0]);
    listening(&mut simulation, &[0]);
    assert!(claims(&simulation, false).is_empty() && claims(&simulation, true).is_empty());
}
