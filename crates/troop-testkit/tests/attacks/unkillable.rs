//! Workers that not even `SIGKILL` ends, because they wait in the kernel.

use std::time::Duration;

use troop::{Cluster, Error, Event, Setup};
use troop_testkit::{Troop, at_once, is_running, wait_until};

use super::fuse::Mount;
use super::running::open_directory;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_end_is_named_and_followed_by_another_and_delays_no_stop() {
    const TEST: &str = "unkillable::a_worker_that_does_not_end_is_named_and_followed_by_another_and_delays_no_stop";
    if !super::support::is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(file) = Mount::unclosable_by_all(TEST, &home.path().join("file")) else { return };
    let script = format!("exec 9<{}; exec 9<&-", file.at.display());
    let setup = Setup::new().program("sh").args(["-c", &script]);
    let builder = Cluster::builder().workers(1).replace(at_once()).setup(setup);
    let mut troop = Troop::start(builder.grace(Duration::from_millis(200)));
    let forked = |event: &Event| match event {
        Event::Fork { worker, .. } => Some(worker.clone()),
        _ => None,
    };
    let first = troop.until("the first worker", forked).await;
    wait_until("it closes the file", || file.closes() == 1);
    first.kill(9).await.unwrap();
    let unkillable = |event: &Event| match event {
        Event::Error { worker: Some(worker), error, .. } => {
            matches!(**error, Error::Unkillable(_)).then(|| worker.pid())
        }
        _ => None,
    };
    assert_eq!(troop.until("its name", unkillable).await, first.pid());
    assert!(is_running(first.pid()));
    let second = troop.until("its successor", forked).await;
    wait_until("it closes the file", || file.closes() == 2);
    let outcome = troop.cluster.stop().await.unwrap();
    assert!(!outcome.is_graceful(), "{outcome:?}");
    drop(file);
    wait_until("both end", || !is_running(first.pid()) && !is_running(second.pid()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_left_behind_that_does_not_end_is_reported_and_delays_the_end_little() {
    const TEST: &str =
        "unkillable::a_process_left_behind_that_does_not_end_is_reported_and_delays_the_end_little";
    if !super::support::is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(file) = Mount::unclosable_by_all(TEST, &home.path().join("file")) else { return };
    let script = format!("(exec 9<{}; exec 9<&-) & exec sleep 1000", file.at.display());
    let setup = Setup::new().program("sh").args(["-c", &script]);
    let mut troop = Troop::start(Cluster::builder().workers(1).replace(at_once()).setup(setup));
    let forked = |event: &Event| match event {
        Event::Fork { worker, .. } => Some(worker.clone()),
        _ => None,
    };
    let worker = troop.until("the worker", forked).await;
    wait_until("its child closes the file", || file.closes() == 1);
    troop.cluster.stop().await.unwrap();
    // The cluster ends, though the process does not.
    let mut reported = Vec::new();
    while let Some(event) = troop.events.recv().await {
        if let Event::Error { error, .. } = event {
            reported.push(error);
        }
    }
    let [error] = &reported[..] else { panic!("{reported:?}") };
    let Error::Survivors { leader, count, .. } = **error else { panic!("{error}") };
    assert_eq!((leader, count), (worker.pid(), 1));
    assert_eq!(file.closes(), 1);
    drop(file);
}
