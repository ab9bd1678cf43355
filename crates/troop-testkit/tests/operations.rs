//! Operations on a running cluster are answered when they are over, with what became of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::future::Future;
use std::time::Duration;

use troop::event::{Address, ExitHow};
use troop::setup::Stdio;
use troop::snapshot::Phase;
use troop::supervise::{
    Afterwards, NotReady, Outcome, Progress, RecycleFailed, ReloadFailed, ReplaceFailure, Restart,
    RestartPolicy,
};
use troop::{Cluster, Error, Event, Reload, Setup, WorkerId};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, is_running, node_program};

const SERVER: &str = "require('http').createServer((q, s) => s.end('ok')).listen(0, '127.0.0.1');";

fn js(text: &str) -> Setup {
    Setup::new().script(node_program("run.js")).args([text]).stderr(Stdio::Forward)
}

fn server() -> Setup {
    let fixture = env!("CARGO_BIN_EXE_troop-fixture");
    Setup::new().program(fixture).args(["line", "127.0.0.1:0"])
}

async fn soon<T>(operation: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, operation).await.expect("it is answered")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_ready_when_every_slot_has_a_ready_worker() {
    let troop = Troop::start(Cluster::builder().workers(3).setup(server()));
    assert_eq!(soon(troop.cluster.ready()).await, Ok(3));
    let snapshot = troop.cluster.snapshot().await.unwrap();
    assert_eq!((snapshot.phase, snapshot.ready), (Phase::Running, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_completes_when_all_workers_are_replaced() {
    let troop = Troop::start(Cluster::builder().workers(2).replace(at_once()).setup(server()));
    soon(troop.cluster.ready()).await.unwrap();
    let done = soon(troop.cluster.reload()).await.unwrap();
    assert_eq!((done.replaced, done.started), (2, 0));
    let in_service: Vec<_> = troop.cluster.snapshot().await.unwrap().workers;
    let in_service = in_service.iter().filter(|worker| worker.leaving_ms.is_none());
    let ids: Vec<_> = in_service.map(|worker| worker.id).collect();
    assert_eq!(ids.len(), 2);
    assert!(ids.iter().all(|id| *id > WorkerId(2)), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_fails_hands_over_the_worker_its_exit_and_its_last_lines() {
    let troop = Troop::start(Cluster::builder().workers(1).replace(at_once()).setup(js(SERVER)));
    soon(troop.cluster.ready()).await.unwrap();
    let bad = "console.error('the table', 'is missing'); process.exit(9)";
    let setup = js(bad);
    let failed = soon(troop.cluster.reload_as(setup)).await.unwrap_err();
    let ReloadFailed::Failed { reason, replaced: 0, then: Afterwards::KeepsRunning } = &failed
    else {
        panic!("{failed:?}");
    };
    let ReplaceFailure::Ended { worker, how, last_lines, .. } = reason else {
        panic!("{reason:?}")
    };
    assert_eq!((*worker, *how), (WorkerId(2), ExitHow::Code(9)));
    assert_eq!(last_lines.as_deref(), Some("the table is missing"));
    let shown = Error::from(failed);
    assert_eq!(
        format!("{shown:?}"),
        "cannot reload: the new worker ended with exit code 9; 0 workers had been replaced, the others keep running: the table is missing"
    );
    // The old one serves.
    assert_eq!(soon(troop.cluster.ready()).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_which_addresses_have_moved() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let at = |path: &str| {
        js(&format!("require('http').createServer((q, s) => s.end('ok')).listen('{path}');"))
    };
    let (old, new) = (path("old"), path("new"));
    let troop = Troop::start(Cluster::builder().workers(2).replace(at_once()).setup(at(&old)));
    soon(troop.cluster.ready()).await.unwrap();
    let reload = Reload::new().setup(at(&new)).allow_moved(true);
    let done = soon(troop.cluster.reload_with(reload)).await.unwrap();
    let shown =
        |addresses: &[Address]| addresses.iter().map(Address::to_string).collect::<Vec<_>>();
    assert_eq!((shown(&done.left), shown(&done.added)), (vec![old], vec![new]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_reload_is_refused_while_one_is_under_way() {
    let never_ready = at_once().min_ready_time(Duration::from_secs(3600));
    let troop = Troop::start(Cluster::builder().workers(1).replace(never_ready).setup(server()));
    soon(troop.cluster.ready()).await.unwrap();
    let first = troop.cluster.reload();
    assert_eq!(soon(troop.cluster.reload()).await, Err(ReloadFailed::UnderWay));
    let stop = troop.cluster.stop();
    assert_eq!(soon(first).await, Err(ReloadFailed::Stopped));
    assert!(soon(stop).await.unwrap().is_graceful());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_continues_when_its_future_is_dropped() {
    let mut troop = Troop::start(Cluster::builder().workers(1).replace(at_once()).setup(server()));
    soon(troop.cluster.ready()).await.unwrap();
    drop(troop.cluster.reload());
    let replaced = |e: &Event| match e {
        Event::Supervision(Progress::ReloadFinished) => Some(()),
        _ => None,
    };
    troop.until("the end of the reload", replaced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recycling_is_answered_with_the_worker_that_has_taken_over() {
    let troop = Troop::start(Cluster::builder().workers(2).replace(at_once()).setup(server()));
    soon(troop.cluster.ready()).await.unwrap();
    let new = soon(troop.cluster.recycle(WorkerId(2), "a test")).await.unwrap();
    assert_eq!(new, WorkerId(3));
    let again = soon(troop.cluster.recycle(WorkerId(77), "a test")).await;
    assert_eq!(again, Err(RecycleFailed::NotInService));
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_is_answered_when_the_surplus_is_gone() {
    let troop = Troop::start(Cluster::builder().workers(1).setup(server()));
    soon(troop.cluster.scale(3)).await.unwrap();
    let workers = troop.cluster.workers();
    assert_eq!(workers.len(), 3);
    soon(troop.cluster.scale(1)).await.unwrap();
    let alive = workers.iter().filter(|worker| is_running(worker.pid())).count();
    assert_eq!(alive, 1);
    let refused = soon(troop.cluster.scale(1_000_000)).await.unwrap_err();
    assert!(matches!(refused, Error::Settings(_)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_answered_when_all_workers_have_ended() {
    let troop = Troop::start(Cluster::builder().workers(2).setup(server()));
    soon(troop.cluster.ready()).await.unwrap();
    let workers = troop.cluster.workers();
    soon(troop.cluster.pause()).await.unwrap();
    assert!(workers.iter().all(|worker| !is_running(worker.pid())));
    assert_eq!(soon(troop.cluster.ready()).await, Err(NotReady::Paused));
    assert_eq!(soon(troop.cluster.reload()).await.unwrap().started, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_completes_with_the_outcome() {
    let troop = Troop::start(Cluster::builder().workers(2).setup(server()));
    soon(troop.cluster.ready()).await.unwrap();
    let (one, same) = (troop.cluster.stop(), troop.cluster.stop());
    assert_eq!(soon(one).await.unwrap(), Outcome::Stopped { killed: vec![] });
    assert_eq!(soon(same).await.unwrap(), Outcome::Stopped { killed: vec![] });
    let late = soon(troop.cluster.stop()).await;
    assert!(matches!(late, Err(Error::ClusterOver)), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_now_kills_workers_that_do_not_finish() {
    let stubborn = "process.on('disconnect', () => {}); process.on('SIGTERM', () => {});
        setInterval(() => {}, 1000); require('http').createServer(() => {}).listen(0, '127.0.0.1');";
    let builder = Cluster::builder().workers(1).grace(Duration::from_secs(3600));
    let troop = Troop::start(builder.setup(js(stubborn)));
    soon(troop.cluster.ready()).await.unwrap();
    let stop = troop.cluster.stop();
    let now = soon(troop.cluster.stop_now()).await.unwrap();
    assert_eq!(now, Outcome::Stopped { killed: vec![WorkerId(1)] });
    assert_eq!(soon(stop).await.unwrap(), now);
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_fails_with_the_reason_and_the_last_lines() {
    let restart = RestartPolicy::new(1).max_ends(1);
    let bad = "console.error('no config'); process.exit(4)";
    let troop = Troop::start(Cluster::builder().workers(1).restart(restart).setup(js(bad)));
    let failed = soon(troop.cluster.ready()).await.unwrap_err();
    assert!(failed.to_string().contains("worker 1 ended with exit code 4"), "{failed}");
    assert_eq!(failed.last_lines(), Some("no config"));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_have_ended_for_good_are_not_waited_for() {
    let restart = RestartPolicy::new(2).restart(Restart::Never);
    let text = format!("if (require('cluster').worker.id === 1) process.exit(3); {SERVER}");
    let troop = Troop::start(Cluster::builder().workers(2).restart(restart).setup(js(&text)));
    let failed = soon(troop.cluster.ready()).await.unwrap_err();
    let how = ExitHow::Code(3);
    let expected = NotReady::Ended { worker: WorkerId(1), slot: 0, how, ready: 1, wanted: 2 };
    assert_eq!(failed, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_of_an_unsupervised_cluster_fail_with_the_reason() {
    let troop = Troop::start(Cluster::builder().setup(server()));
    assert_eq!(soon(troop.cluster.ready()).await, Err(NotReady::Unsupervised));
    assert_eq!(soon(troop.cluster.reload()).await, Err(ReloadFailed::Unsupervised));
    let recycle = soon(troop.cluster.recycle(WorkerId(1), "a test")).await;
    assert_eq!(recycle, Err(RecycleFailed::Unsupervised));
    for refused in [
        soon(troop.cluster.scale(2)).await.unwrap_err(),
        soon(troop.cluster.pause()).await.unwrap_err(),
        soon(troop.cluster.stop()).await.unwrap_err(),
    ] {
        let Error::NotReady(why) = &refused else { panic!("{refused:?}") };
        assert_eq!(**why, NotReady::Unsupervised);
    }
}

#[test]
fn a_plain_thread_waits_for_an_operation_without_a_runtime() {
    let builder = Cluster::builder().workers(1).replace(at_once()).setup(server());
    let cluster = builder.start_in_thread(|_| {}).unwrap();
    assert_eq!(cluster.ready().wait(), Ok(1));
    assert_eq!(cluster.reload().wait().unwrap().replaced, 1);
    assert!(cluster.stop().wait().unwrap().is_graceful());
}
