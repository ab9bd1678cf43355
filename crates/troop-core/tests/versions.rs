//! Snapshots of older and newer minor versions are read, and those of other major ones are not.
//!
//! `snapshots/` keeps what versions have written. The sample of a version is made by running
//! `the_fields_of_a_snapshot_are_those_of_the_sample_of_its_version` with `WRITE_SAMPLE=1`.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use troop_core::cluster::{Action, Cluster, FormerState, Options};
use troop_core::policy::Connection;
use troop_core::primary::{self, Primary};
use troop_core::snapshot::{self, SnapshotError};
use troop_core::supervise::{self, Supervisor};
use troop_core::wire::incoming;
use troop_core::wire::outgoing::SockName;
use troop_core::{ConnId, ListenerId, Time, WorkerId};

const NOW: Time = Time(1);

/// Carries out what a cluster has decided. Returns the listener that was bound last.
fn act(cluster: &mut Cluster) -> Option<ListenerId> {
    let mut bound = None;
    while let Some(action) = cluster.next_action(NOW) {
        match action {
            Action::Primary(primary::Action::Bind { listener, .. }) => {
                let name = SockName { address: "127.0.0.1".into(), family: "IPv4", port: 80 };
                cluster.primary.bound(NOW, listener, Ok(Some(name)));
                bound = Some(listener);
            }
            Action::Fork { slot, .. } => {
                let worker = cluster.primary.fork();
                cluster.primary.spawned(worker, 100 + worker.0, None, 100);
                cluster.forked(NOW, slot, worker, true);
            }
            _ => {}
        }
    }
    bound
}

fn say(cluster: &mut Cluster, worker: WorkerId, line: &str) {
    cluster.primary.message(NOW, worker, incoming::parse(line.as_bytes()).unwrap());
}

/// A cluster with workers that listen, and connections that they have and that wait.
fn cluster() -> Cluster {
    let config = primary::Config { node_window: 3, ..primary::Config::default() };
    let mut cluster = Cluster::new(Primary::new(config), Options::default());
    cluster.supervise(NOW, Supervisor::new(supervise::Config::new(2)));
    act(&mut cluster);
    let workers: Vec<WorkerId> = cluster.primary.workers().map(|(id, _)| id).collect();
    assert_eq!(workers.len(), 2);
    let mut listener = None;
    for worker in workers {
        for line in [
            r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#,
            r#"{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"address":null,"port":80,"addressType":4}"#,
            r#"{"cmd":"NODE_CLUSTER","act":"listening","seq":2,"index":0,"address":null,"port":80,"addressType":4}"#,
        ] {
            say(&mut cluster, worker, line);
            listener = act(&mut cluster).or(listener);
        }
    }
    for number in 0..20 {
        cluster.primary.accepted(
            NOW,
            listener.unwrap(),
            ConnId(number),
            Connection::new(None, Some(7)),
        );
        act(&mut cluster);
    }
    cluster
}

/// The names of all fields, with those of the structures that they are in.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(all) => all.iter().for_each(|one| fields(one, path, found)),
        Value::Object(all) => {
            for (name, value) in all {
                let path = format!("{path}/{name}");
                fields(value, &path, found);
                found.insert(path);
            }
        }
        _ => {}
    }
}

fn fields_of(snapshot: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    fields(&serde_json::from_slice(snapshot).unwrap(), "", &mut found);
    found
}

fn path(version: u32, minor: u32) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    directory.join(format!("{version}.{minor}.json"))
}

fn sample(minor: u32) -> Vec<u8> {
    let path = path(snapshot::VERSION, minor);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Whoever adds a field gives it a default and increments the minor version, or increments the major one.
#[test]
fn the_fields_of_a_snapshot_are_those_of_the_sample_of_its_version() {
    let written = snapshot::write(&cluster()).unwrap();
    if std::env::var_os("WRITE_SAMPLE").is_some() {
        std::fs::write(path(snapshot::VERSION, snapshot::MINOR), &written).unwrap();
    }
    assert_eq!(fields_of(&written), fields_of(&sample(snapshot::MINOR)));
}

#[test]
fn snapshots_of_older_and_newer_minor_versions_are_read() {
    let current = fields_of(&sample(snapshot::MINOR));
    let older = fields_of(&sample(snapshot::MINOR - 1));
    let newer = fields_of(&sample(snapshot::MINOR + 1));
    assert!(older.is_subset(&current) && older != current);
    assert!(newer.is_superset(&current) && newer != current);
    for minor in snapshot::MINOR - 1..=snapshot::MINOR + 1 {
        let mut read = snapshot::read(&sample(minor)).unwrap_or_else(|e| panic!("{minor}: {e}"));
        assert_eq!(read.primary.workers().count(), 2);
        // It goes on: a worker takes what it has, and gets more of what waits.
        let (first, _) = read.primary.workers().next().unwrap();
        let waiting = read.primary.count_waiting();
        assert_eq!(read.primary.waiting().count(), waiting);
        assert!(waiting > 0);
        let seqs: Vec<u64> = read.primary.in_flight(first).map(|(seq, _)| seq).collect();
        for seq in seqs {
            let line = format!(r#"{{"cmd":"NODE_CLUSTER","ack":{seq},"accepted":true,"seq":1}}"#);
            say(&mut read, first, &line);
        }
        act(&mut read);
        assert!(read.primary.count_waiting() < waiting, "{minor}");
    }
}

#[test]
fn a_snapshot_of_another_major_version_is_refused_by_its_number() {
    let text = String::from_utf8(sample(snapshot::MINOR)).unwrap();
    let own = format!(r#"{{"version":{},"#, snapshot::VERSION);
    assert!(text.starts_with(&own), "{text:.40}");
    let other = text.replacen(&own, r#"{"version":4711,"#, 1);
    let error = snapshot::read(other.as_bytes()).unwrap_err();
    assert!(matches!(error, SnapshotError::Version(4711)), "{error}");
    assert!(error.to_string().contains("version 4711"), "{error}");
}

#[test]
fn workers_and_listeners_are_taken_out_of_a_snapshot_of_which_the_rest_is_damaged() {
    let mut written: Value = serde_json::from_slice(&snapshot::write(&cluster()).unwrap()).unwrap();
    let primary = &mut written["cluster"]["primary"];
    for part in ["config", "actions", "rebalance", "former"] {
        primary[part] = "damaged".into();
    }
    for worker in primary["workers"].as_array_mut().unwrap() {
        (worker[1]["in_flight"], worker[1]["liveness"]) = ("damaged".into(), "damaged".into());
    }
    let former = |written: &Value| FormerState::read(&serde_json::to_vec(written).unwrap());
    let state = former(&written).unwrap();
    assert_eq!(state.wanted(), 2);
    let mut rebuilt = Cluster::new(Primary::new(primary::Config::default()), Options::default());
    let supervisor = Supervisor::new(supervise::Config::new(2));
    rebuilt.rebuild(NOW, state, supervisor).unwrap();
    rebuilt.recovered(NOW, |_| false);
    let is_start = |action: &Action| matches!(action, Action::Fork { .. });
    let actions: Vec<_> = std::iter::from_fn(|| rebuilt.next_action(NOW)).collect();
    assert!(!actions.iter().any(is_start), "all slots have workers: {actions:?}");
    let (as_before, mut cluster) = (cluster(), rebuilt);
    let shown = |cluster: &Cluster| -> Vec<_> {
        let workers = cluster.primary.workers();
        workers.map(|(id, status)| (id, status.pid, status.slot, status.state)).collect()
    };
    assert_eq!(shown(&cluster), shown(&as_before));
    for listener in as_before.primary.listeners() {
        let key = as_before.primary.listener_key(listener);
        assert_eq!(cluster.primary.listener_key(listener), key);
        assert_eq!(cluster.primary.who_listens(listener), as_before.primary.who_listens(listener));
    }
    let all_ready = |cluster: &Cluster| {
        let supervisor = cluster.supervisor().unwrap();
        cluster.primary.workers().all(|(id, _)| supervisor.standing(NOW, id) == Some((true, 1)))
    };
    assert!(all_ready(&cluster));
    // The next one has a number of its own.
    assert!(cluster.primary.fork().0 > 2);
    // Without these nothing can be gone on with.
    for part in ["workers", "listeners"] {
        let mut written = written.clone();
        written["cluster"]["primary"][part] = "damaged".into();
        assert!(former(&written).is_err(), "{part}");
    }
    written["version"] = 4711.into();
    assert!(matches!(former(&written).unwrap_err(), SnapshotError::Version(4711)));
}
