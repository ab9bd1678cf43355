//! Health checks, and what becomes of workers that fail them.

use std::time::Duration;

use troop::setup::Stdio;
use troop::supervise::{HealthCheck, HealthTest, Progress};
use troop::{Cluster, Event, Setup};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once, wait_until, zombies};

use super::{SERVER, fixture, js, replaced};

fn tested(test: HealthTest) -> HealthCheck {
    HealthCheck::new(test)
        .every(Duration::from_millis(50))
        .timeout(Duration::from_secs(2))
        .failures(2)
}

/// The second worker alone is sick.
async fn only_the_unhealthy_worker_is_replaced(setup: Setup, test: HealthTest, word: &str) {
    let mut troop = Troop::start(
        Cluster::builder().workers(2).replace(at_once()).setup(setup).health(tested(test)),
    );
    let unhealthy = troop
        .until("the test", |e| {
            if let Event::Unhealthy { worker: w, reason: why, .. } = e {
                Some((w.id(), why.clone()))
            } else {
                None
            }
        })
        .await;
    assert!(unhealthy.1.contains(word), "{}", unhealthy.1);
    assert_eq!(unhealthy.0.0, 2, "the healthy one failed: {}", unhealthy.1);
    assert_eq!(replaced(&mut troop).await, (2, 3));
    // Its successor passes, so no further worker is replaced. A test of the sick one may still have
    // been under way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    while let Some(event) = troop.events.try_recv() {
        match &event {
            Event::Unhealthy { worker, .. } => assert_eq!(worker.id().0, 2, "{event}"),
            Event::Supervision(Progress::Recycling { .. }) => panic!("{event}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_node_worker_that_answers_with_errors_is_replaced_under_any_policy() {
    for scheduling in ["round-robin", "auto", "shared", "steered", "sticky"] {
        let text = "const sick = require('cluster').worker.id === 2;
            require('http').createServer((q, s) => { s.statusCode = sick && q.url === '/health' ? 503 : 200; s.end('ok') }).listen(0, '127.0.0.1');";
        eprintln!("{scheduling}");
        let builder = Cluster::builder().scheduling(scheduling.parse().unwrap()).setup(js(text));
        let mut troop = Troop::start(
            builder
                .workers(2)
                .replace(at_once())
                .health(tested(HealthTest::Http("/health".into()))),
        );
        let why = troop
            .until("the test", |e| {
                if let Event::Unhealthy { worker: w, reason: why, .. } = e {
                    Some((w.id().0, why.clone()))
                } else {
                    None
                }
            })
            .await;
        assert!(why.0 == 2 && why.1.contains("503"), "{why:?}");
        assert_eq!(replaced(&mut troop).await, (2, 3));
    }
}

#[tokio::test]
async fn health_checks_of_rust_workers_use_http_or_connections_to_unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let both = [
        (fixture(["http", "127.0.0.1:0"]), HealthTest::Http("/".into())),
        (fixture(["unix", path.to_str().unwrap()]), HealthTest::Tcp),
    ];
    for (setup, test) in both {
        let mut troop =
            Troop::start(Cluster::builder().workers(2).setup(setup).health(tested(test)));
        for _ in 0..2 {
            troop.until("listening", |e| matches!(e, Event::Listening { .. }).then_some(())).await;
        }
        // They are tested several times, and pass.
        tokio::time::timeout(TEST_TIMEOUT, async {
            loop {
                let workers = troop.cluster.snapshot().await.unwrap().workers;
                assert!(workers.iter().all(|worker| worker.id.0 <= 2), "{workers:?}");
                if workers.len() == 2 && workers.iter().all(|worker| worker.stats.taken >= 3) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        while let Some(event) = troop.events.try_recv() {
            assert!(!matches!(event, Event::Unhealthy { .. }), "{event}");
        }
    }
}

#[tokio::test]
async fn a_worker_that_accepts_and_says_nothing_is_replaced() {
    let text = format!(
        "if (require('cluster').worker.id === 2) require('net').createServer(() => {{}}).listen(0, '127.0.0.1'); else {SERVER}"
    );
    let test = tested(HealthTest::Http("/".into())).timeout(Duration::from_millis(500));
    let mut troop = Troop::start(
        Cluster::builder().workers(2).replace(at_once()).setup(js(&text)).health(test),
    );
    let why = troop
        .until("the test", |e| {
            if let Event::Unhealthy { reason: why, .. } = e { Some(why.clone()) } else { None }
        })
        .await;
    assert!(why.contains("no answer within"), "{why}");
    assert_eq!(replaced(&mut troop).await, (2, 3));
}

#[tokio::test]
async fn a_health_check_can_be_a_command() {
    let command = "test $TROOP_WORKER != 2 && kill -0 $TROOP_WORKER_PID && test $TROOP_SLOT -le 1";
    only_the_unhealthy_worker_is_replaced(
        fixture(["line", "127.0.0.1:0"]),
        HealthTest::Command(command.into()),
        "ended with 1",
    )
    .await;
}

#[tokio::test]
async fn the_output_of_a_failed_health_command_is_part_of_the_error() {
    // More than a pipe holds, of which the end is kept; and something that a terminal would obey.
    let command =
        "head -c 200000 /dev/zero | tr '\\0' x; printf 'no \\033[31mdatabase\\n' >&2; exit 7";
    let test = tested(HealthTest::Command(command.into())).failures(u32::MAX).timeout(TEST_TIMEOUT);
    let mut troop = Troop::start(
        Cluster::builder().workers(1).setup(fixture(["line", "127.0.0.1:0"])).health(test),
    );
    let said = troop
        .until("a test", |e| matches!(e, Event::Unhealthy { .. }).then(|| e.to_string()))
        .await;
    assert!(
        said.contains("its command ended with 7; it printed: xxx")
            && said.ends_with(r"xno \x1b[31mdatabase"),
        "{said}"
    );
    assert!(said.len() < 1000, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_take_longer_to_start_than_they_may_leave_no_zombies() {
    let test =
        tested(HealthTest::Command("true".into())).timeout(Duration::ZERO).failures(u32::MAX);
    let mut troop = Troop::start(
        Cluster::builder().workers(1).setup(fixture(["line", "127.0.0.1:0"])).health(test),
    );
    for _ in 0..20 {
        troop
            .until("a test", |e| {
                matches!(e, Event::Unhealthy { reason: why, .. } if why.contains("did not end"))
                    .then_some(())
            })
            .await;
    }
    // The tests go on, so there may be one at any time, but not all.
    wait_until("all commands have been reaped", || zombies() == 0);
}

#[tokio::test]
async fn a_hung_worker_writes_a_report_before_it_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().to_str().unwrap().to_owned();
    let text = "require('http').createServer((q, s) => { if (cluster.worker.id === 2) s.end() }).listen(0, '127.0.0.1')";
    let flags = ["--report-on-signal", "--report-directory", &report];
    let setup = js(text).exec_argv(flags).report_signal(12).stderr(Stdio::Null);
    let test = tested(HealthTest::Http("/".into())).timeout(Duration::from_millis(300));
    let mut troop =
        Troop::start(Cluster::builder().workers(1).replace(at_once()).setup(setup).health(test));
    assert_eq!(replaced(&mut troop).await, (1, 2));
    let written = || std::fs::read_dir(directory.path()).unwrap().count();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while written() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "there is no report");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
