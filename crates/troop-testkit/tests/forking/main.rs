//! Forks: what becomes of those that fail, what workers get, and that nothing is left over.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod what_workers_get;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, getuid, setrlimit};
use troop::event::ExitHow;
use troop::supervise::{Progress, RestartPolicy};
use troop::{Cluster, Error, Event, Fork, Setup, WorkerId};
use troop_testkit::{
    TEST_TIMEOUT, Troop, ask, free_port, is_running, open_descriptors, talk, wait_until, zombies,
};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(FIXTURE).args(args)
}

/// True in a process of this test's own, where descriptors and children are its own too. Otherwise
/// runs it in one, and returns false.
fn alone(test: &str) -> bool {
    if std::env::var_os("TEST_RUNS_ALONE").is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env("TEST_RUNS_ALONE", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
    );
    false
}

/// A primary in a separate process, which ends with its test.
struct Primary {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Primary {
    fn start(program: impl AsRef<Path>, args: &[&str]) -> Primary {
        let mut command = Command::new(program.as_ref());
        let mut process = command
            .arg("primary")
            .args(args)
            .stdout(StdStdio::piped())
            .stderr(StdStdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Primary { process, output }
    }

    /// Reads events until one contains `text`.
    fn until(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the primary ended before {text:?}"
            );
        }
        line
    }

    fn kill(&self, signal: Signal) {
        rustix::process::kill_process(pid(self.process.id()), signal).unwrap();
    }

    fn workers(&self) -> Vec<u32> {
        troop_testkit::children(self.process.id())
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

// ---- forks that fail ----

async fn failure(setup: Setup) -> (Troop, String, std::io::Error) {
    let troop = Troop::with(setup);
    match troop.cluster.fork(Fork::new()).await {
        Err(Error::Spawn { step, source, .. }) => (troop, step, source),
        other => panic!("the fork should have failed: {other:?}"),
    }
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_the_error_of_its_fork() {
    let (_, step, cause) = failure(Setup::new().program("/no/such/program")).await;
    assert_eq!(
        (step.as_str(), cause.kind()),
        ("execute the program", std::io::ErrorKind::NotFound)
    );
    let (_, _, cause) = failure(Setup::new().program("no-such-program-in-the-path")).await;
    assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_the_error_of_its_fork() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("text");
    std::fs::write(&file, "no program").unwrap();
    let (_, _, cause) = failure(Setup::new().program(&file)).await;
    assert_eq!(cause.kind(), std::io::ErrorKind::PermissionDenied);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (_, _, cause) = failure(Setup::new().program(&file)).await;
    assert_eq!(cause.raw_os_error(), Some(rustix::io::Errno::NOEXEC.raw_os_error()));
    let (_, _, cause) = failure(Setup::new().program(directory.path())).await;
    assert_eq!(cause.kind(), std::io::ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_working_directory_that_does_not_exist_is_the_error_of_its_fork() {
    let (_, step, cause) = failure(fixture(["echo"]).cwd("/no/such/directory")).await;
    assert!(step.contains("/no/such/directory"), "{step}");
    assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_change_of_user_without_permission_is_the_error_of_its_fork() {
    if getuid().is_root() {
        return;
    }
    let (_, step, cause) = failure(fixture(["echo"]).uid(0)).await;
    assert_eq!(
        (step.as_str(), cause.kind()),
        ("become the user", std::io::ErrorKind::PermissionDenied)
    );
}

#[tokio::test]
async fn a_nul_byte_in_the_settings_is_the_error_of_its_fork() {
    let troop = Troop::with(fixture(["a\0b"]));
    assert!(matches!(troop.cluster.fork(Fork::new()).await, Err(Error::Settings(_))));
    let troop = Troop::with(fixture(["echo"]));
    assert!(matches!(
        troop.cluster.fork(Fork::new().env("A", "b\0c")).await,
        Err(Error::Settings(_))
    ));
}

#[tokio::test]
async fn a_failed_fork_uses_up_its_id_and_has_no_other_effect() {
    let (mut troop, ..) = failure(Setup::new().program("/no/such/program")).await;
    assert!(troop.cluster.workers().is_empty());
    troop.cluster.setup(fixture(["line", "127.0.0.1:0"])).unwrap();
    let second = troop.fork().await;
    assert_eq!(second.id(), WorkerId(2));
    let port = troop.listening(&second).await;
    troop.cluster.setup(Setup::new().program("/no/such/program")).unwrap();
    assert!(troop.cluster.fork(Fork::new()).await.is_err());
    assert!(ask(port, "").await.unwrap().starts_with("2 "));
    assert!(
        !troop.story().contains("worker 1"),
        "a failed fork has no events but its error: {}",
        troop.story()
    );
}

#[tokio::test]
async fn a_fork_without_descriptors_fails_and_a_later_one_succeeds() {
    if !alone("a_fork_without_descriptors_fails_and_a_later_one_succeeds") {
        return;
    }
    let mut troop = Troop::with(fixture(["line", "127.0.0.1:0"]));
    let first = troop.fork().await;
    let port = troop.listening(&first).await;
    let before = getrlimit(Resource::Nofile);
    // Room for none, then for a few, so that every step of a fork fails once.
    for room in 0..4 {
        let count = open_descriptors() as u64;
        setrlimit(Resource::Nofile, Rlimit { current: Some(count - 1 + room), ..before }).unwrap();
        let result = troop.cluster.fork(Fork::new()).await;
        setrlimit(Resource::Nofile, before).unwrap();
        match result {
            Err(Error::Spawn { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()))
            }
            Err(other) => panic!("{other}"),
            // Enough room after all.
            Ok(worker) => {
                worker.kill(9).await.unwrap();
                troop.exit(&worker).await;
            }
        }
    }
    assert!(ask(port, "").await.unwrap().starts_with("1 "));
    let later = troop.fork().await;
    troop.listening(&later).await;
}

#[tokio::test]
async fn a_supervised_cluster_whose_program_is_missing_gives_up_with_the_cause() {
    let mut troop =
        Troop::start(Cluster::builder().workers(2).setup(Setup::new().program("/no/such/program")));
    let cause = troop
        .until("giving up", |e| match e {
            Event::Supervision(p @ Progress::GivingUp(_)) => Some(format!("{p:?}")),
            _ => None,
        })
        .await;
    assert!(cause.contains("No such file or directory"), "{cause}");
}

// ---- the end ----

#[tokio::test]
async fn three_hundred_dead_workers_leave_nothing_behind() {
    if !alone("three_hundred_dead_workers_leave_nothing_behind") {
        return;
    }
    let mut troop = Troop::with(fixture(["exit", "0"]).silent(true));
    let before = open_descriptors();
    for round in 0..30 {
        let mut workers = Vec::new();
        for _ in 0..10 {
            workers.push(troop.fork().await);
        }
        if round % 2 == 0 {
            for worker in &workers {
                let _ = worker.kill(9).await;
            }
        }
        let mut gone = 0;
        while gone < workers.len() {
            let event = tokio::time::timeout(TEST_TIMEOUT, troop.events.recv())
                .await
                .expect("an exit")
                .unwrap();
            gone += usize::from(matches!(event, Event::Exit { .. }));
        }
    }
    assert_eq!(zombies(), 0);
    let after = open_descriptors();
    assert!(after <= before + 3, "{before} descriptors before, {after} after");
    assert!(troop.cluster.workers().is_empty());
}

#[tokio::test]
async fn disconnecting_the_cluster_waits_for_the_last_worker() {
    let mut troop = Troop::with(fixture(["http", "127.0.0.1:0"]));
    let (one, two) = (troop.fork().await, troop.fork().await);
    let port = troop.listening(&one).await;
    troop.listening(&two).await;
    let slow = tokio::spawn(async move { troop_testkit::get(port, "/slow").await });
    wait_for_a_connection(&[&one, &two]).await;
    troop.cluster.disconnect().await.unwrap();
    assert!(!is_running(one.pid()) && !is_running(two.pid()));
    assert!(one.is_dead() && two.is_dead());
    assert_eq!(
        slow.await.unwrap().unwrap(),
        "slow\n",
        "the request that was being served is answered"
    );
    assert_eq!(
        (troop.exit(&one).await, troop.exit(&two).await),
        (ExitHow::Code(0), ExitHow::Code(0))
    );
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "the listener is closed");
    // Without workers it ends immediately.
    tokio::time::timeout(Duration::from_secs(1), troop.cluster.disconnect())
        .await
        .unwrap()
        .unwrap();
}

async fn wait_for_a_connection(workers: &[&troop::WorkerHandle]) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let mut taken = 0;
        for worker in workers {
            taken += worker.stats().await.taken;
        }
        if taken > 0 {
            return;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Two supervised workers that are replaced at once when they end, as those are that have run for a
/// while.
fn supervised() -> troop::Builder {
    let restart = RestartPolicy::new(2).min_uptime(Duration::ZERO);
    Cluster::builder().workers(2).restart(restart).setup(fixture(["line", "127.0.0.1:0"]))
}

#[tokio::test]
async fn disconnecting_a_supervised_cluster_ends_it() {
    let mut troop = Troop::start(supervised());
    for _ in 0..2 {
        troop.until("listening", |e| matches!(e, Event::Listening { .. }).then_some(())).await;
    }
    let workers = troop.cluster.workers();
    tokio::time::timeout(Duration::from_secs(10), troop.cluster.disconnect())
        .await
        .expect("it ends")
        .unwrap();
    assert!(workers.iter().all(|w| !is_running(w.pid())));
}

#[tokio::test]
async fn a_supervised_cluster_that_is_dropped_ends_and_starts_no_more_workers() {
    let Troop { cluster, mut events, .. } = Troop::start(supervised());
    let mut listening = 0;
    while listening < 2 {
        let event = tokio::time::timeout(TEST_TIMEOUT, events.recv()).await.unwrap().unwrap();
        listening += usize::from(matches!(event, Event::Listening { .. }));
    }
    drop(cluster);
    let mut forks = 0;
    let end = tokio::time::timeout(Duration::from_secs(8), async {
        while let Some(event) = events.recv().await {
            forks += usize::from(matches!(event, Event::Fork { .. }));
        }
    });
    let ended = end.await.is_ok();
    assert_eq!(forks, 0, "nobody wants new workers");
    assert!(ended, "the events end when the last worker is gone");
}

#[test]
fn a_worker_ends_with_its_primary() {
    let mut primary = Primary::start(FIXTURE, &["orphan"]);
    primary.until("online");
    primary.until("online");
    let workers = primary.workers();
    assert_eq!(workers.len(), 2);
    primary.kill(Signal::KILL);
    wait_until("the orphans end", || workers.iter().all(|w| !is_running(*w)));
}

#[test]
fn a_worker_may_outlive_its_primary() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sign of life");
    let mut primary = Primary::start(FIXTURE, &["outlive", file.to_str().unwrap()]);
    primary.until("online");
    primary.until("online");
    let workers = primary.workers();
    // The face says that it outlives right after it is online.
    std::thread::sleep(Duration::from_millis(200));
    primary.kill(Signal::KILL);
    wait_until("the sign of life", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == "outlived")
    });
    wait_until("they end by themselves", || workers.iter().all(|w| !is_running(*w)));
}

#[test]
fn a_primary_that_is_asked_to_end_drains_its_workers() {
    let port = free_port();
    let mut primary = Primary::start(FIXTURE, &["http", &format!("127.0.0.1:{port}")]);
    primary.until("listening");
    primary.until("listening");
    let workers = primary.workers();
    let slow = std::thread::spawn(move || {
        talk(([127, 0, 0, 1], port), "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    });
    std::thread::sleep(Duration::from_millis(150));
    primary.kill(Signal::TERM);
    assert!(slow.join().unwrap().unwrap().ends_with("slow\n"));
    let status = primary.process.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(workers.iter().all(|w| !is_running(*w)));
}

#[test]
fn a_second_signal_to_stop_ends_at_once() {
    let mut primary = Primary::start(FIXTURE, &["orphan"]);
    primary.until("online");
    primary.until("online");
    primary.kill(Signal::INT);
    primary.until("stopping");
    // Signals within half a second of the first one are the same request, so this one is repeated
    // until it counts, which is long before the workers' grace period of 30 s is over.
    wait_until("the end of the primary", || {
        primary.kill(Signal::INT);
        primary.process.try_wait().unwrap().is_some()
    });
}
