//! A setting of a builder has an effect however the cluster is started, or it is an error that
//! names the setting. It is never ignored in silence.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use troop::activation::{ActivationSocket, InheritedSocket};
use troop::embed::Adoption;
use troop::policy::{AutoLimits, Rebalanced};
use troop::setup::{Output, Source};
use troop::supervise::{
    HealthCheck, HealthTest, ReadyWhen, RecyclePolicy, ReplacePolicy, RestartPolicy,
};
use troop::{Builder, Cluster, Error, Events, Fork, Scheduling, Setup};
use troop_testkit::TEST_TIMEOUT;

/// A way to start a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Run,
    Start,
    StartUnsupervised,
    Thread,
    ThreadUnsupervised,
}

use Way::{Run, Start, StartUnsupervised, Thread, ThreadUnsupervised};

const WAYS: [Way; 5] = [Run, Start, StartUnsupervised, Thread, ThreadUnsupervised];
const EVERYWHERE: &[Way] = &[];
const NOWHERE: &[Way] = &WAYS;
/// Only [`Builder::run`] obeys signals and calls observers.
const NOT_WITH_START: &[Way] = &[Start, StartUnsupervised, Thread, ThreadUnsupervised];
/// The program starts and ends workers itself.
const NOT_UNSUPERVISED: &[Way] = &[StartUnsupervised, ThreadUnsupervised];

/// A method of the builder, something to set by it, and where that has no effect.
type Setting = (&'static str, Set, &'static [Way]);
type Set = fn(Builder) -> Builder;

struct Nowhere;

impl Output for Nowhere {
    fn write(&mut self, _: Source, _: &[u8]) {}

    fn end(&mut self, _: Source) {}
}

fn fixture() -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(["line", "127.0.0.1:0"])
}

fn settings() -> Vec<Setting> {
    vec![
        ("workers", |b| b.workers(1), EVERYWHERE),
        ("setup", |b| b.setup(fixture().env("A", "1")), EVERYWHERE),
        (
            "activation",
            |b| b.activation([ActivationSocket::bind("127.0.0.1:0").unwrap()]),
            EVERYWHERE,
        ),
        ("activation_by_connections", |b| b.activation_by_connections(true), NOWHERE),
        ("inherited", |b| b.inherited(InheritedSocket::all().unwrap()), EVERYWHERE),
        ("scheduling", |b| b.scheduling(Scheduling::Weighted), EVERYWHERE),
        (
            "scheduling_of",
            |b| b.scheduling_of("8000".parse().unwrap(), Scheduling::Weighted),
            EVERYWHERE,
        ),
        ("auto_limits", |b| b.auto_limits(AutoLimits::default()), EVERYWHERE),
        (
            "auto_limits",
            |b| b.scheduling(Scheduling::RoundRobin).auto_limits(AutoLimits::default()),
            NOWHERE,
        ),
        ("rebalance", |b| b.rebalance(Rebalanced::None), EVERYWHERE),
        ("weights", |b| b.weights([50]), NOWHERE),
        ("weights", |b| b.weights([50]).scheduling(Scheduling::Weighted), NOT_UNSUPERVISED),
        ("grace", |b| b.grace(Duration::from_secs(5)), NOT_UNSUPERVISED),
        ("drain_spread", |b| b.drain_spread(Duration::from_secs(1)), NOT_UNSUPERVISED),
        ("drain_delay", |b| b.drain_delay(Duration::from_secs(1)), NOT_UNSUPERVISED),
        ("hang_timeout", |b| b.hang_timeout(None), EVERYWHERE),
        ("keep_listeners", |b| b.keep_listeners(false), EVERYWHERE),
        ("pending_limit", |b| b.pending_limit(8), EVERYWHERE),
        ("restart", |b| b.restart(RestartPolicy::new(1).max_ends(3)), NOT_UNSUPERVISED),
        ("replace", |b| b.replace(ReplacePolicy::default().max_surge(2)), NOT_UNSUPERVISED),
        (
            "replace",
            |b| {
                let policy = ReplacePolicy::default().ready_when(ReadyWhen::Listening);
                b.replace(policy.ready_timeout(Duration::from_secs(5)))
            },
            EVERYWHERE,
        ),
        (
            "recycle",
            |b| b.recycle(RecyclePolicy::default().memory(Some(1 << 30))),
            NOT_UNSUPERVISED,
        ),
        ("may_listen", |b| b.may_listen("127.0.0.1:0".parse().unwrap()), EVERYWHERE),
        ("health", |b| b.health(HealthCheck::new(HealthTest::Tcp)), EVERYWHERE),
        ("output", |b| b.output(Nowhere), EVERYWHERE),
        ("leave_signals", |b| b.leave_signals([libc::SIGHUP]), NOT_WITH_START),
        ("leave_signals", |b| b.leave_signals([libc::SIGHUP, libc::SIGUSR1]), NOWHERE),
        ("reap_orphans", |b| b.reap_orphans(true), NOT_WITH_START),
        ("on_event", |b| b.on_event(|_| ()), NOT_WITH_START),
        ("on_start", |b| b.on_start(drop), EVERYWHERE),
    ]
}

/// Stops a cluster, or drops one that has nothing to stop, and waits for its end.
fn end(cluster: Cluster, mut events: Events) {
    // Without supervision there is nothing to stop.
    drop(cluster.stop());
    drop(cluster);
    while let Some(event) = events.blocking_recv(TEST_TIMEOUT) {
        let _ = event;
    }
    assert!(events.try_recv().is_none());
}

/// Starts a cluster with a setting, and ends it.
fn started(way: Way, set: fn(Builder) -> Builder) -> troop::Result<()> {
    let builder = Cluster::builder().setup(fixture());
    let builder = match way {
        StartUnsupervised | ThreadUnsupervised => set(builder),
        Run | Start | Thread => set(builder.workers(1)),
    };
    match way {
        Run => builder.on_start(|cluster| drop(cluster.stop())).run(),
        Start | StartUnsupervised => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let cluster = runtime.block_on(async { builder.start() })?;
            let events = cluster.events();
            end(cluster, events);
            Ok(())
        }
        Thread | ThreadUnsupervised => {
            let cluster = builder.start_in_thread(|_| ())?;
            let events = cluster.events();
            end(cluster, events);
            Ok(())
        }
    }
}

#[test]
fn no_setting_is_ignored_silently() {
    for (name, set, ignored) in settings() {
        for way in WAYS {
            let result = started(way, set);
            if ignored.contains(&way) {
                let Err(Error::Settings(text)) = &result else {
                    panic!("{name} is ignored by {way:?}: {result:?}")
                };
                assert!(text.starts_with(&format!("Builder::{name} has no effect ")), "{text}");
            } else {
                assert!(result.is_ok(), "{name} with {way:?}: {result:?}");
            }
        }
    }
}

/// A socket that workers get instead of a channel.
fn activated(builder: Builder) -> Builder {
    builder.activation([ActivationSocket::bind("127.0.0.1:0").unwrap()])
}

#[test]
fn a_setting_that_needs_a_channel_is_refused_where_workers_have_none() {
    let settings: [(&str, Set); 16] = [
        ("scheduling", |b| b.scheduling(Scheduling::PowerOfTwo)),
        ("scheduling_of", |b| b.scheduling_of("8000".parse().unwrap(), Scheduling::Weighted)),
        ("pending_limit", |b| b.pending_limit(8)),
        ("weights", |b| b.weights([50])),
        ("inherited", |b| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            b.inherited([InheritedSocket::of(&listener).unwrap()])
        }),
        ("may_listen", |b| b.may_listen("8000".parse().unwrap())),
        ("keep_listeners", |b| b.keep_listeners(false)),
        ("hang_timeout", |b| b.hang_timeout(Some(Duration::from_secs(30)))),
        ("replace", |b| b.replace(ReplacePolicy::default().ready_when(ReadyWhen::Message))),
        ("replace", |b| b.replace(ReplacePolicy::default().ready_when(ReadyWhen::Listening))),
        ("health", |b| b.health(HealthCheck::new(HealthTest::Tcp))),
        ("health", |b| b.health(HealthCheck::new(HealthTest::Http("/".into())))),
        ("activation_by_connections", |b| b.activation_by_connections(true)),
        ("drain_spread", |b| b.drain_spread(Duration::from_secs(1))),
        ("auto_limits", |b| b.auto_limits(AutoLimits::default())),
        ("rebalance", |b| b.rebalance(Rebalanced::None)),
    ];
    for (name, set) in settings {
        let result =
            set(activated(Cluster::builder().setup(fixture())).workers(1)).start_in_thread(|_| ());
        let Err(Error::Settings(text)) = &result else {
            panic!("{name} is ignored with activation: {result:?}")
        };
        assert!(text.starts_with(&format!("Builder::{name} has no effect with Bu")), "{text}");
    }
    let fine: [Set; 5] = [
        |b| b.recycle(RecyclePolicy::default().connections(Some(100))),
        |b| b.hang_timeout(None),
        |b| b.health(HealthCheck::new(HealthTest::Command("true".into()))),
        |b| b.replace(ReplacePolicy::default().ready_when(ReadyWhen::Notified)),
        |b| b.recycle(RecyclePolicy::default().memory(Some(1 << 30))),
    ];
    for set in fine {
        let builder = set(activated(Cluster::builder().setup(fixture())).workers(1));
        let cluster = builder.start_in_thread(|_| ()).unwrap();
        let events = cluster.events();
        end(cluster, events);
    }
}

#[test]
fn operations_that_need_channels_are_errors_without_them() {
    let builder = activated(Cluster::builder().setup(fixture())).workers(1);
    let cluster = builder.start_in_thread(|_| ()).unwrap();
    let events = cluster.events();
    cluster.ready().wait().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = |result: troop::Result<()>| {
        let Err(Error::Settings(text)) = &result else { panic!("it is ignored: {result:?}") };
        assert!(text.contains("activation"), "{text}");
    };
    refused(runtime.block_on(cluster.set_scheduling(None, Scheduling::Weighted)).map(drop));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    refused(cluster.offer(InheritedSocket::of(&listener).unwrap()));
    refused(cluster.workers()[0].try_send("anything"));
    assert_eq!(cluster.broadcast("anything").sent, 0);
    end(cluster, events);
}

#[test]
fn a_supervised_cluster_refuses_what_its_supervisor_decides() {
    for is_supervised in [false, true] {
        let builder = Cluster::builder().setup(fixture());
        let builder = if is_supervised { builder.workers(1) } else { builder };
        let cluster = builder.start_in_thread(|_| ()).unwrap();
        let events = cluster.events();
        let result = cluster.expect_forks(true);
        let is_refused =
            matches!(&result, Err(Error::Settings(text)) if text.contains("expect_forks"));
        assert_eq!(is_refused, is_supervised, "{result:?}");
        end(cluster, events);
    }
}

#[test]
fn a_weight_that_nothing_goes_by_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let cluster = Cluster::builder().setup(fixture()).start_in_thread(|_| ()).unwrap();
    let events = cluster.events();
    let result = runtime.block_on(cluster.fork(Fork::new().weight(5)));
    has_no_effect(&result, "Fork::weight", "set Builder::scheduling");
    let worker = runtime.block_on(cluster.fork(Fork::new())).unwrap();
    let changed = runtime.block_on(worker.set_weight(5));
    has_no_effect(&changed, "WorkerHandle::set_weight", "Cluster::set_scheduling");
    let adopt = |weight| {
        let mut process = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let (channel, _worker) = Adoption::channel().unwrap();
        let adoption = Adoption::new(process.id(), channel).unwrap();
        let adopted = cluster.adopt_blocking(adoption.weight(weight));
        process.kill().unwrap();
        process.wait().unwrap();
        adopted
    };
    has_no_effect(&adopt(5), "Adoption::weight", "such as Scheduling::Weighted");
    // One listener is enough.
    let port = "8000".parse().unwrap();
    runtime.block_on(cluster.set_scheduling(Some(port), Scheduling::Weighted)).unwrap();
    runtime.block_on(worker.set_weight(50)).unwrap();
    assert_eq!(worker_weights(&runtime, &cluster), [50]);
    runtime.block_on(worker.kill(libc::SIGKILL)).unwrap();
    let worker = runtime.block_on(cluster.fork(Fork::new().weight(5))).unwrap();
    runtime.block_on(worker.kill(libc::SIGKILL)).unwrap();
    adopt(5).unwrap();
    end(cluster, events);
}

#[test]
fn a_weight_of_an_activated_worker_is_refused_where_nothing_goes_by_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let own = || ActivationSocket::bind_steered("127.0.0.1:0", 1).unwrap();
    let shared = || ActivationSocket::bind("127.0.0.1:0").unwrap();
    let program = || Setup::new().program("/bin/sleep").args(["1000"]);
    let start = |socket, supervised: bool| {
        let builder = Cluster::builder().setup(program()).activation([socket]);
        let builder = if supervised { builder.workers(1) } else { builder };
        builder.start_in_thread(|_| ()).unwrap()
    };
    for (socket, why) in [(shared(), "bind_steered"), (own(), "Builder::weights")] {
        let cluster = start(socket, false);
        let events = cluster.events();
        let forked = runtime.block_on(cluster.fork(Fork::new().weight(5)));
        has_no_effect(&forked, "Fork::weight", why);
        let worker = runtime.block_on(cluster.fork(Fork::new())).unwrap();
        let changed = runtime.block_on(worker.set_weight(5));
        has_no_effect(&changed, "WorkerHandle::set_weight", why);
        runtime.block_on(worker.kill(libc::SIGKILL)).unwrap();
        end(cluster, events);
    }
    for (socket, is_weighted) in [(shared(), false), (own(), true)] {
        let cluster = start(socket, true);
        let mut events = cluster.events();
        while cluster.workers().is_empty() {
            events.blocking_recv(TEST_TIMEOUT).unwrap();
        }
        let worker = cluster.workers().remove(0);
        let changed = runtime.block_on(worker.set_weight(5));
        if is_weighted {
            changed.unwrap();
            assert_eq!(worker_weights(&runtime, &cluster), [5]);
        } else {
            has_no_effect(&changed, "WorkerHandle::set_weight", "bind_steered");
        }
        end(cluster, events);
    }
}

fn has_no_effect<T: std::fmt::Debug>(result: &troop::Result<T>, setting: &str, advice: &str) {
    let Err(Error::Settings(text)) = result else { panic!("it is ignored: {result:?}") };
    let begin = format!("{setting} has no effect ");
    assert!(text.starts_with(&begin) && text.contains(advice), "{text}");
}

fn worker_weights(runtime: &tokio::runtime::Runtime, cluster: &Cluster) -> Vec<u32> {
    let snapshot = runtime.block_on(cluster.snapshot()).unwrap();
    snapshot.workers.iter().map(|worker| worker.weight).collect()
}

#[test]
fn the_table_names_every_setting() {
    let source = include_str!("../../troop/src/primary/builder.rs");
    let methods = source.split("    pub fn ").skip(1).filter_map(|method| {
        let (name, rest) = method.split_once('(')?;
        rest.starts_with("mut self,").then_some(name)
    });
    let methods: BTreeSet<&str> = methods.filter(|name| !name.starts_with("start")).collect();
    let table: BTreeSet<&str> = settings().into_iter().map(|(name, ..)| name).collect();
    assert!(methods.len() > 15, "{methods:?}");
    assert_eq!(methods, table);
}
