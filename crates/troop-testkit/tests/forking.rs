//! Forks: what workers get, what becomes of forks that fail, and that nothing is left over.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio as StdStdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, getuid, setrlimit};
use troop::{
    Cluster, Error, Event, ExitHow, Fork, Progress, RestartPolicy, Setup, Stdio, WorkerId,
};
use troop_testkit::{
    PATIENCE, Troop, ask, is_running, open_descriptors, talk, wait_until, zombies,
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

/// A primary in a process of its own, which ends with its test.
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
        let id = self.process.id();
        let text =
            std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
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

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
async fn a_user_that_one_may_not_become_is_the_error_of_its_fork() {
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
async fn a_fork_that_failed_has_used_its_number_and_harms_nobody() {
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

// ---- what workers get ----

async fn inspected(setup: Setup, fork: Fork) -> serde_json::Value {
    let mut troop = Troop::with(setup);
    let worker = troop.cluster.fork(fork).await.unwrap();
    troop.message(&worker).await
}

#[tokio::test]
async fn a_worker_gets_its_directory_environment_and_arguments() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    let setup = fixture(["inspect"]).cwd(&path).env("TEST_VALUE", "cluster");
    let seen = inspected(setup.clone(), Fork::new()).await;
    assert_eq!((seen["cwd"].as_str(), seen["env"].as_str()), (path.to_str(), Some("cluster")));
    let seen = inspected(setup, Fork::new().env("TEST_VALUE", "fork")).await;
    assert_eq!(seen["env"], "fork");
}

#[tokio::test]
async fn the_identity_of_a_worker_is_gone_from_its_environment() {
    let seen = inspected(fixture(["inspect"]), Fork::new().env("NODE_UNIQUE_ID", "77")).await;
    let left: Vec<&str> =
        seen["identity"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    for name in ["NODE_UNIQUE_ID", "NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE"] {
        assert!(!left.contains(&name), "{left:?}");
    }
}

#[tokio::test]
async fn a_worker_inherits_no_descriptors_but_its_own() {
    // An inheritable one, as a careless program leaves it.
    let careless = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let mut troop = Troop::with(fixture(["inspect"]).stdin(Stdio::Null));
    let _others = (troop.fork().await, troop.fork().await);
    let worker = troop.fork().await;
    let seen = troop.message(&worker).await;
    let fds: Vec<&str> =
        seen["fds"].as_array().unwrap().iter().filter_map(|v| v.as_str()).collect();
    let sockets = fds
        .iter()
        .filter_map(|fd| fd.split_once("=socket:"))
        .map(|(_, inode)| inode)
        .collect::<BTreeSet<_>>()
        .len();
    // The channel, and the pair by which tokio hears of signals, if it was made.
    assert!(sockets <= 3, "{fds:?}");
    let nulls = fds.iter().filter(|fd| {
        fd.ends_with("=/dev/null")
            && !fd.starts_with("0=")
            && !fd.starts_with("1=")
            && !fd.starts_with("2=")
    });
    assert_eq!(nulls.count(), 0, "{fds:?}");
    assert!(!fds.iter().any(|fd| fd.contains("[pidfd]")), "{fds:?}");
    drop(careless);
}

#[tokio::test]
async fn standard_streams_can_be_pipes() {
    let setup = fixture(["print", "TEST_VALUE"])
        .env("TEST_VALUE", "of the fork")
        .silent(true)
        .stdin(Stdio::Pipe);
    let mut troop = Troop::with(setup);
    let worker = troop.fork().await;
    let (mut out, mut err) = (worker.take_stdout().unwrap(), worker.take_stderr().unwrap());
    worker.take_stdin().unwrap().write_all(b"a line\n").unwrap();
    let text = tokio::task::spawn_blocking(move || {
        let (mut o, mut e) = (String::new(), String::new());
        out.read_to_string(&mut o).unwrap();
        err.read_to_string(&mut e).unwrap();
        (o, e)
    });
    let (out, err) = text.await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("out of the fork\nin a line\n", "err\n"));
    assert!(worker.take_stdout().is_none(), "a pipe can be taken once");
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(0));
}

#[tokio::test]
async fn what_a_worker_wrote_before_its_death_is_remembered() {
    let mut troop = Troop::with(fixture(["die"]).stderr(Stdio::Forward));
    let worker = troop.fork().await;
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(3));
    let last = tokio::task::spawn_blocking(move || worker.last_stderr(PATIENCE)).await.unwrap();
    assert_eq!(last.as_deref(), Some("about to fail\nfatal: no such table"));
}

#[tokio::test]
async fn a_worker_can_run_as_another_user() {
    if !getuid().is_root() {
        return;
    }
    // Where that user may execute it.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("fixture");
    std::fs::copy(FIXTURE, &program).unwrap();
    let mut troop =
        Troop::with(fixture(["inspect"]).program(&program).cwd("/").uid(65534).gid(65533));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await["uid"], 65534);
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), ["65534"; 4]);
    assert_eq!(field("Gid:"), ["65533"; 4]);
    assert!(field("Groups:").is_empty(), "the privileged primary's groups are gone");
    troop.cluster.setup(Setup::new().groups([4, 5])).unwrap();
    let worker = troop.fork().await;
    troop.message(&worker).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    assert!(status.lines().any(|l| l.starts_with("Groups:") && l.contains("4 5")), "{status}");
}

#[tokio::test]
async fn a_worker_leads_a_process_group_if_it_should() {
    let mut troop = Troop::with(fixture(["inspect"]));
    let worker = troop.fork().await;
    let own = rustix::process::getpgrp().as_raw_nonzero().get();
    assert_eq!(troop.message(&worker).await["pgid"], own);
    troop.cluster.setup(Setup::new().own_process_group(true)).unwrap();
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await["pgid"], worker.pid());
}

#[tokio::test]
async fn a_worker_has_the_name_of_its_program() {
    let seen = inspected(fixture(["inspect"]), Fork::new()).await;
    assert_eq!(seen["comm"], "troop-fixture");
}

#[tokio::test]
async fn profiles_of_workers_do_not_overwrite_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.profraw");
    let seen = inspected(fixture(["inspect"]), Fork::new().env("LLVM_PROFILE_FILE", &file)).await;
    assert_eq!(seen["profile"], directory.path().join("a-%p.profraw").to_str().unwrap());
}

#[tokio::test]
async fn clusters_nest() {
    let mut troop = Troop::with(fixture(["nest", "2"]));
    // The second of this cluster, so that numbers tell levels apart.
    let (_first, worker) = (troop.fork().await, troop.fork().await);
    let seen = troop.message(&worker).await;
    assert_eq!(
        (seen["ancestors"].as_str(), seen["id left"].as_bool()),
        (Some("/2/1/1"), Some(false))
    );
    tokio::time::timeout(PATIENCE, troop.cluster.disconnect())
        .await
        .expect("the whole tree ends")
        .unwrap();
}

// ---- setup ----

#[tokio::test]
async fn setup_is_cumulative_and_every_fork_reports_it() {
    let mut troop = Troop::with(fixture(["inspect"]));
    troop.cluster.setup(Setup::new().env("TEST_VALUE", "one")).unwrap();
    troop.cluster.setup(Setup::new().env("OTHER", "two")).unwrap();
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await["env"], "one");
    let id = worker.id();
    let mut settings = Vec::new();
    while settings.len() < 3 {
        let next = |e: &Event| if let Event::Setup(s) = e { Some(s.clone()) } else { None };
        settings.push(troop.until("settings", next).await);
    }
    assert_eq!(settings[2].args, ["inspect"]);
    assert_eq!(settings[2].env.len(), 2);
    troop.until("the fork", |e| matches!(e, Event::Fork(w) if w.id() == id).then_some(())).await;
}

// ---- the image ----

fn respawned_worker_works_after(change: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("server");
    std::fs::copy(FIXTURE, &program).unwrap();
    let port = free_port();
    let mut primary = Primary::start(&program, &["line", &format!("127.0.0.1:{port}")]);
    primary.until("listening");
    primary.until("listening");
    change(&program);
    let old = primary.workers();
    rustix::process::kill_process(pid(old[0]), Signal::KILL).unwrap();
    primary.until("died");
    primary.until("listening");
    let new: Vec<u32> = primary.workers().into_iter().filter(|w| !old.contains(w)).collect();
    assert_eq!(new.len(), 1);
    wait_until("the new worker serves", || {
        talk(([127, 0, 0, 1], port), "").is_ok_and(|a| a.trim().ends_with(&new[0].to_string()))
    });
    let name = std::fs::read_to_string(format!("/proc/{}/comm", new[0])).unwrap();
    assert_eq!(name.trim(), "server", "not the name of the link that it was executed by");
}

#[test]
fn a_worker_is_the_running_program_after_its_file_was_removed() {
    respawned_worker_works_after(|file| std::fs::remove_file(file).unwrap());
}

#[test]
fn a_worker_is_the_running_program_after_its_file_was_replaced() {
    respawned_worker_works_after(|file| {
        let new = file.with_extension("new");
        std::fs::write(&new, "#!/bin/sh\nexit 9\n").unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, file).unwrap();
    });
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
            let event = tokio::time::timeout(PATIENCE, troop.events.next())
                .await
                .expect("an exit")
                .unwrap();
            gone += usize::from(matches!(event, Event::Exit(..)));
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
    // And with nobody left it is quick.
    tokio::time::timeout(Duration::from_secs(1), troop.cluster.disconnect())
        .await
        .unwrap()
        .unwrap();
}

async fn wait_for_a_connection(workers: &[&troop::WorkerHandle]) {
    let deadline = Instant::now() + PATIENCE;
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
    let restart = RestartPolicy { min_uptime: Duration::ZERO, ..RestartPolicy::new(2) };
    Cluster::builder().workers(2).restart(restart).setup(fixture(["line", "127.0.0.1:0"]))
}

#[tokio::test]
async fn disconnecting_a_supervised_cluster_ends_it() {
    let mut troop = Troop::start(supervised());
    for _ in 0..2 {
        troop.until("listening", |e| matches!(e, Event::Listening(..)).then_some(())).await;
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
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        listening += usize::from(matches!(event, Event::Listening(..)));
    }
    drop(cluster);
    let mut forks = 0;
    let end = tokio::time::timeout(Duration::from_secs(8), async {
        while let Some(event) = events.next().await {
            forks += usize::from(matches!(event, Event::Fork(_)));
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
fn a_primary_that_is_told_to_end_drains_its_workers() {
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
fn a_primary_that_is_told_twice_ends_at_once() {
    let mut primary = Primary::start(FIXTURE, &["orphan"]);
    primary.until("online");
    primary.until("online");
    let before = Instant::now();
    primary.kill(Signal::INT);
    primary.until("stopping");
    primary.kill(Signal::INT);
    primary.process.wait().unwrap();
    assert!(before.elapsed() < Duration::from_secs(3), "it took {:?}", before.elapsed());
}
