//! What one worker can make the primary keep.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use troop_core::event::{ExitHow, Notice};
use troop_core::primary::{Action, Budget, Config, Primary};
use troop_core::wire::incoming;
use troop_core::{ListenerId, Time, Violation, WorkerId};

const NOW: Time = Time(1);

fn fork(primary: &mut Primary) -> WorkerId {
    let worker = primary.fork();
    primary.spawned(worker, worker.0, None, 100);
    say(primary, worker, r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#);
    worker
}

fn say(primary: &mut Primary, worker: WorkerId, line: &str) {
    primary.message(NOW, worker, incoming::parse(line.as_bytes()).unwrap());
}

/// Carries out what the primary wants. Returns what it says to workers, the listeners that it
/// opens, and what it reports.
fn act(primary: &mut Primary) -> (Vec<String>, Vec<ListenerId>, Vec<Violation>) {
    let (mut said, mut bound, mut reported) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(action) = primary.next_action() {
        match action {
            Action::Send { line, .. } | Action::SendListener { line, .. } => {
                said.push(String::from_utf8(line).unwrap())
            }
            Action::Bind { listener, .. } => {
                bound.push(listener);
                primary.bound(NOW, listener, Ok(None));
            }
            Action::Notify(Notice::Misbehaved { violation, .. }) => reported.push(violation),
            _ => {}
        }
    }
    (said, bound, reported)
}

fn query(
    primary: &mut Primary,
    worker: WorkerId,
    port: u32,
) -> (Vec<String>, Vec<ListenerId>, Vec<Violation>) {
    let line = format!(
        r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":7,"index":0,"address":null,"port":{port},"addressType":4}}"#
    );
    say(primary, worker, &line);
    act(primary)
}

#[test]
fn an_impossible_address_is_rejected_and_not_repeated() {
    let mut primary = Primary::new(Config::default());
    let worker = fork(&mut primary);
    act(&mut primary);
    for (kind, address, port) in [
        ("-1", "/".repeat(5000), "-1"),
        ("4", "1".repeat(5000), "80"),
        ("\"udp6\"", ":".repeat(5000), "80"),
    ] {
        let line = format!(
            r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":7,"index":0,"address":"{address}","port":{port},"addressType":{kind}}}"#
        );
        say(&mut primary, worker, &line);
        let (said, bound, reported) = act(&mut primary);
        assert!(
            said.len() == 1 && said[0].contains(r#""errno":-36"#) && said[0].len() < 200,
            "{said:?}"
        );
        assert!(bound.is_empty() && reported.is_empty());
        let line = line.replace("queryServer", "listening");
        let mut other = Primary::new(Config::default());
        let worker = fork(&mut other);
        say(&mut other, worker, &line);
        assert!(matches!(act(&mut other).2[..], [Violation::Malformed(_)]));
    }
    let data = "d".repeat(5000);
    let line = format!(
        r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":7,"index":0,"address":null,"port":80,"addressType":4,"data":"{data}"}}"#
    );
    say(&mut primary, worker, &line);
    let (said, bound, _) = act(&mut primary);
    assert!(
        said.len() == 1
            && said[0].contains(r#""errno":-90"#)
            && said[0].len() < 200
            && bound.is_empty(),
        "{said:?}"
    );
}

#[test]
fn a_worker_has_its_share_of_listeners_and_no_more() {
    let mut primary = Primary::new(Config::default());
    let budget = Budget { limit: 1024, slots: 3, base: 10 };
    primary.set_budget(budget);
    let share = budget.listener_share(3);
    let (greedy, honest) = (fork(&mut primary), fork(&mut primary));
    act(&mut primary);
    let mut opened = 0;
    for port in 1..=90 {
        let (said, bound, reported) = query(&mut primary, greedy, 1000 + port);
        opened += bound.len();
        if bound.is_empty() {
            assert!(said[0].contains(r#""errno":-24"#), "{said:?}");
            assert!(reported.iter().all(|violation| *violation == Violation::OverShare(share)));
        }
    }
    assert_eq!(opened, share);
    // What another one has opened does not count, and nobody else suffers.
    assert_eq!(query(&mut primary, honest, 80).1.len(), 1);
    assert!(query(&mut primary, greedy, 80).0[0].contains(r#""errno":null"#));
    // Who insists is ended, and what it alone had is closed.
    let insisted = (0..200).take_while(|port| {
        !primary.is_cut_off(greedy) && !query(&mut primary, greedy, 3000 + port).0.is_empty()
    });
    assert!(insisted.count() < 200 && primary.is_cut_off(greedy));
    assert_eq!(primary.listeners().count(), 1);
}

/// What a worker is told about a port that cannot be had (errno 98), what was tried, and what is
/// reported.
fn query_in_vain(
    primary: &mut Primary,
    now: Time,
    worker: WorkerId,
    port: u32,
) -> (String, bool, Vec<Violation>) {
    let line = format!(
        r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":7,"index":0,"address":null,"port":{port},"addressType":4}}"#
    );
    primary.message(now, worker, incoming::parse(line.as_bytes()).unwrap());
    let (mut said, mut tried, mut reported) = (String::new(), false, Vec::new());
    while let Some(action) = primary.next_action() {
        match action {
            Action::Send { line, .. } => said = String::from_utf8(line).unwrap(),
            Action::Bind { listener, .. } => {
                tried = true;
                primary.bound(now, listener, Err(98));
            }
            Action::Notify(Notice::Misbehaved { violation, .. }) => reported.push(violation),
            _ => {}
        }
    }
    (said, tried, reported)
}

#[test]
fn a_worker_that_keeps_wasting_binds_is_ended_but_not_one_that_retries_every_second() {
    let mut primary = Primary::new(Config::default());
    let (greedy, honest) = (fork(&mut primary), fork(&mut primary));
    act(&mut primary);
    let mut tries = 0;
    for port in 0..10_000 {
        let (said, tried, reported) = query_in_vain(&mut primary, NOW, greedy, 1 + port);
        tries += u32::from(tried);
        assert!(
            reported.iter().all(|violation| matches!(violation, Violation::TooManyBinds(256))),
            "{reported:?}"
        );
        assert!(
            said.is_empty()
                || said.contains(if tried { r#""errno":-98"# } else { r#""errno":-11"# }),
            "{said}"
        );
    }
    assert_eq!(tries, 256);
    assert!(primary.is_cut_off(greedy), "who insists is ended");
    // Twenty addresses that somebody else has, for an hour.
    for second in 0..3600 {
        for port in 0..20 {
            let (said, tried, reported) =
                query_in_vain(&mut primary, Time(1 + second * 1000), honest, 1 + port);
            assert!(
                tried && reported.is_empty() && said.contains(r#""errno":-98"#),
                "{said} {reported:?}"
            );
        }
    }
    // Nor does one get round it that closes what it got.
    let closes = fork(&mut primary);
    act(&mut primary);
    let mut opened = 0;
    for _ in 0..1000 {
        opened += query(&mut primary, closes, 80).1.len();
        say(
            &mut primary,
            closes,
            r#"{"cmd":"NODE_CLUSTER","act":"close","key":"null:80:4:undefined:0","seq":8}"#,
        );
        act(&mut primary);
    }
    assert_eq!(opened, 256);
}

#[test]
fn a_listener_that_its_opener_leaves_counts_against_another_who_uses_it() {
    let mut primary = Primary::new(Config::default());
    primary.set_budget(Budget { limit: 256, slots: 1, base: 10 });
    let (first, second) = (fork(&mut primary), fork(&mut primary));
    act(&mut primary);
    let share = primary.budget().listener_share(2);
    for port in 0..u32::try_from(share).unwrap() {
        assert_eq!(query(&mut primary, first, 1000 + port).1.len(), 1);
        assert!(query(&mut primary, second, 1000 + port).1.is_empty());
    }
    primary.exited(NOW, first, ExitHow::Code(0));
    act(&mut primary);
    let most = primary.budget().listener_share(1);
    for port in 0..50 {
        query(&mut primary, second, 2000 + port);
    }
    assert_eq!(primary.listeners().count(), most.max(share));
}

#[test]
fn a_worker_that_acknowledges_no_descriptors_is_ended() {
    let mut primary =
        Primary::new(Config { scheduling: "shared".parse().unwrap(), ..Config::default() });
    let worker = fork(&mut primary);
    act(&mut primary);
    let mut rounds = 0;
    while !primary.is_cut_off(worker) {
        query(&mut primary, worker, 80);
        say(
            &mut primary,
            worker,
            r#"{"cmd":"NODE_CLUSTER","act":"close","key":"null:80:4:undefined:0","seq":8}"#,
        );
        act(&mut primary);
        rounds += 1;
        assert!(rounds < 10_000, "it goes on for ever");
    }
}
