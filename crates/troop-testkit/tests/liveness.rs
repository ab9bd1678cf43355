//! Workers that listen and hang are found also when no client comes; those that live notice nothing
//! of the search.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use troop::event::{Consequence, ExitHow, Violation};
use troop::{Cluster, Event, Setup, WorkerHandle};
use troop_testkit::{Troop, ask, node_program};

fn rust() -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(["line", "127.0.0.1:0"])
}

fn node(text: &str) -> Setup {
    let text = format!(
        "{text}; require('net').createServer((s) => s.end('served')).listen(0, '127.0.0.1')"
    );
    Setup::new().script(node_program("run.js")).args([text])
}

fn watched(limit: Duration, setup: Setup) -> Troop {
    Troop::start(Cluster::builder().workers(1).hang_timeout(Some(limit)).setup(setup))
}

async fn first(troop: &mut Troop) -> (WorkerHandle, u16) {
    let listens = |e: &Event| match e {
        Event::Listening { worker: w, address: at, .. } => {
            Some((w.clone(), u16::try_from(at.port?).ok()?))
        }
        _ => None,
    };
    troop.until("listening", listens).await
}

async fn is_found(troop: &mut Troop, worker: &WorkerHandle) -> ExitHow {
    let id = worker.id();
    let silent = |e: &Event| {
        matches!(
            e,
            Event::Misbehaved {
                worker: w,
                violation: Violation::Silent(_),
                consequence: Consequence::Killed,
                ..
            } if w.id() == id
        )
        .then_some(())
    };
    troop.until("the silent worker", silent).await;
    troop.exit(worker).await
}

#[tokio::test]
async fn the_port_of_a_single_worker_that_hangs_stays_open_for_its_successor() {
    let mut troop = watched(Duration::from_millis(700), node(""));
    let (worker, port) = first(&mut troop).await;
    kill_process(Pid::from_raw(worker.pid().cast_signed()).unwrap(), Signal::STOP).unwrap();
    // Each client waits until somebody serves it.
    let mut served = 0;
    while served == 0 || !worker.is_dead() {
        let answer = ask(port, "").await;
        assert_eq!(answer.expect("nobody is turned away"), "served");
        served += 1;
    }
    troop.exit(&worker).await;
}

#[tokio::test]
async fn a_stopped_worker_is_ended_and_its_successor_serves() {
    for setup in [rust(), node("")] {
        let mut troop = watched(Duration::from_millis(700), setup);
        let (worker, _) = first(&mut troop).await;
        kill_process(Pid::from_raw(worker.pid().cast_signed()).unwrap(), Signal::STOP).unwrap();
        // It cannot abort either.
        assert_eq!(is_found(&mut troop, &worker).await, ExitHow::Signal(9));
        let (_, port) = first(&mut troop).await;
        assert!(!ask(port, "").await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_node_worker_in_an_endless_loop_is_ended() {
    let mut troop =
        watched(Duration::from_millis(700), node("process.on('message', () => { for (;;); })"));
    let (worker, _) = first(&mut troop).await;
    worker.send(&"spin").await.unwrap();
    assert_eq!(is_found(&mut troop, &worker).await, ExitHow::Signal(6));
}

#[tokio::test]
async fn the_program_of_a_node_worker_never_sees_probes() {
    // This counts the internal messages that Node sees; programs see only their own messages.
    let text = "
        const open = () => require('fs').readdirSync('/proc/self/fd').length;
        let asked = 0, heard = 0, before;
        process.on('message', () => heard++);
        process.on('internalMessage', (m) => {
            if (m.key !== 'troop:probe') return;
            if (++asked === 1) setImmediate(() => before = open());
            if (asked === 5) setImmediate(() => process.send({ before, after: open(), heard }));
        })";
    let mut troop = watched(Duration::from_secs(2), node(text));
    let (worker, port) = first(&mut troop).await;
    let seen: Value = troop.message(&worker).await;
    assert_eq!(seen["heard"], json!(0));
    assert_eq!(seen["before"], seen["after"], "descriptors are left over");
    assert_eq!(ask(port, "").await.unwrap(), "served");
    assert_eq!(worker.stats().await.violations, 0);
}
