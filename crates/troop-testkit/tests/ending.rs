//! How workers are asked to finish: by which signals and messages, in which order, and when; and
//! what a stop or a reload does that comes at an awkward moment.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use troop::snapshot::Phase;
use troop::supervise::{Outcome, Progress};
use troop::{Builder, Cluster, Event, Setup};
use troop_testkit::{TEST_TIMEOUT, Troop, ask, at_once, node_program, wait_until};

/// A program without Node's protocol that writes which signals it gets, and ends by `SIGTERM`.
fn shell(out: &Path) -> Setup {
    let script = "for signal in QUIT INT USR2; do trap \"echo $signal >> $0\" $signal; done; \
         trap 'echo TERM >> $0; exit 0' TERM; echo started >> $0; while kill -0 $PPID; do sleep 0.02; done";
    Setup::new().program("sh").args(["-c".as_ref(), script.as_ref(), out.as_os_str()])
}

fn js(text: &str, out: &Path) -> Setup {
    Setup::new().script(node_program("run.js")).args([text.as_ref(), out.as_os_str()])
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(out: &Path) -> Vec<String> {
    std::fs::read_to_string(out).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits for the program, and for the primary to know that it runs: a start that is under way is
/// cancelled by a stop.
fn wait_until_started(troop: &Troop, out: &Path) {
    wait_until("its start", || lines(out) == ["started"] && !troop.cluster.workers().is_empty());
}

fn alone(setup: Setup) -> Builder {
    Cluster::builder().workers(1).replace(at_once()).setup(setup)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_without_nodes_protocol_gets_its_own_stop_signal_and_then_its_kill_signal() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let setup = shell(&out).stop_signal(Signal::QUIT.as_raw()).kill_signal(Signal::TERM.as_raw());
    let troop = Troop::start(alone(setup).grace(Duration::from_millis(1600)));
    wait_until_started(&troop, &out);
    let outcome = troop.cluster.stop().await.unwrap();
    assert!(outcome.is_graceful(), "{outcome:?}");
    assert_eq!(lines(&out), ["started", "QUIT", "TERM"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_keeps_the_stop_signal_that_it_was_started_with() {
    let home = tempfile::tempdir().unwrap();
    let (before, after) = (home.path().join("before"), home.path().join("after"));
    let kill = Signal::TERM.as_raw();
    let setup = shell(&before).stop_signal(Signal::INT.as_raw()).kill_signal(kill);
    let troop = Troop::start(alone(setup).grace(Duration::from_millis(1600)));
    wait_until_started(&troop, &before);
    let next = shell(&after).stop_signal(Signal::USR2.as_raw());
    troop.cluster.reload_as(next).await.unwrap();
    wait_until("the end of the old one", || lines(&before) == ["started", "INT", "TERM"]);
    assert!(troop.cluster.stop().await.unwrap().is_graceful());
    assert_eq!(lines(&after), ["started", "USR2", "TERM"]);
}

/// It has an open request, so that it cannot disconnect in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_node_worker_has_its_handler_called_before_it_is_killed_however_short_the_grace() {
    const BUSY: &str = "const [, , , out] = process.argv; \
        process.on('SIGINT', () => { require('fs').appendFileSync(out, 'INT\\n'); process.exit(0); }); \
        require('http').createServer((q, s) => { s.write('x'); }).listen(0, '127.0.0.1');";
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let setup = js(BUSY, &out).stop_signal(Signal::INT.as_raw());
    let mut troop = Troop::start(alone(setup).grace(Duration::from_millis(1600)));
    let port = troop
        .until("listening", |event| match event {
            Event::Listening { address, .. } => address.port,
            _ => None,
        })
        .await;
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port.try_into().unwrap())).unwrap();
    std::io::Write::write_all(&mut client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    std::io::Read::read_exact(&mut client, &mut [0; 1]).unwrap();
    let outcome = troop.cluster.stop().await.unwrap();
    assert!(outcome.is_graceful(), "{outcome:?}");
    assert_eq!(lines(&out), ["INT"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_worker_gets_a_message_when_it_is_to_finish_if_that_is_wanted() {
    const SERVER: &str = "const [, , , out] = process.argv; \
        process.on('message', (m) => require('fs').appendFileSync(out, JSON.stringify(m) + '\\n')); \
        process.on('disconnect', () => require('fs').appendFileSync(out, 'disconnected\\n')); \
        require('http').createServer((q, s) => s.end('x')).listen(0, '127.0.0.1');";
    let home = tempfile::tempdir().unwrap();
    for (sends, said) in [(true, &["\"shutdown\"", "disconnected"][..]), (false, &["disconnected"])]
    {
        let out = home.path().join(sends.to_string());
        let mut troop = Troop::start(alone(js(SERVER, &out).shutdown_message(sends)));
        troop
            .until("listening", |event| matches!(event, Event::Listening { .. }).then_some(()))
            .await;
        assert!(troop.cluster.stop().await.unwrap().is_graceful());
        assert_eq!(lines(&out), said, "{}", troop.story());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_drain_delay_clients_are_served_for_a_while_after_the_stop() {
    let fixture = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture"));
    let builder = alone(fixture.args(["line", "127.0.0.1:0"])).drain_delay(Duration::from_secs(2));
    let mut troop = Troop::start(builder);
    let port: u16 = troop
        .until("listening", |event| match event {
            Event::Listening { address, .. } => address.port?.try_into().ok(),
            _ => None,
        })
        .await;
    troop.cluster.ready().await.unwrap();
    let cluster = troop.cluster.clone();
    let stop = tokio::spawn(async move { cluster.stop().await });
    let delayed = |event: &Event| {
        matches!(event, Event::Supervision(Progress::StopDelayed { .. })).then_some(())
    };
    troop.until("the delay", delayed).await;
    assert_eq!(troop.cluster.snapshot().await.unwrap().phase, Phase::Stopping);
    assert!(troop.cluster.ready().await.is_err());
    for _ in 0..3 {
        assert!(ask(port, "").await.unwrap().starts_with("1 "));
    }
    let outcome = stop.await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::Stopped { killed: vec![] });
    assert!(ask(port, "").await.is_err());
}

/// `SIGHUP` has no answer, so none may be lost.
#[test]
fn a_hangup_signal_during_a_reload_is_another_reload_afterwards() {
    let primary = Command::new(env!("CARGO_BIN_EXE_troop-fixture"))
        .args(["primary", "line", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut primary = Killed(primary);
    let pid = Pid::from_child(&primary.0);
    let mut reloads = 0;
    let deadline = Instant::now() + TEST_TIMEOUT;
    let mut ready = 0;
    for line in BufReader::new(primary.0.stdout.take().unwrap()).lines().map(Result::unwrap) {
        assert!(Instant::now() < deadline, "{line}");
        if line.contains("listening on") {
            ready += 1;
            if ready == 2 {
                kill_process(pid, Signal::HUP).unwrap();
            }
        } else if line.starts_with("reload: replacing") {
            // Two more during the first one are one more reload.
            if reloads == 0 {
                kill_process(pid, Signal::HUP).unwrap();
                kill_process(pid, Signal::HUP).unwrap();
            }
        } else if line == "reload: done" {
            reloads += 1;
            if reloads == 2 {
                kill_process(pid, Signal::TERM).unwrap();
            }
        }
    }
    assert!(primary.0.wait().unwrap().success());
    assert_eq!(reloads, 2);
}

/// A program that serves in separate tasks ends when the last of them has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rust_worker_knows_when_its_listeners_and_connections_are_closed() {
    let fixture = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture"));
    let mut troop = Troop::start(alone(fixture.args(["idle until the end", "127.0.0.1:0"])));
    let port: u16 = troop
        .until("listening", |event| match event {
            Event::Listening { address, .. } => address.port?.try_into().ok(),
            _ => None,
        })
        .await;
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    std::io::Read::read_exact(&mut client, &mut [0; 1]).unwrap();
    let cluster = troop.cluster.clone();
    let stop = tokio::spawn(async move { cluster.stop().await });
    let said = |event: &Event| match event {
        Event::Message { message, .. } => Some(message.as_json().to_owned()),
        _ => None,
    };
    assert_eq!(troop.until("the end of its events", said).await, "\"no more events\"");
    assert!(!stop.is_finished());
    drop(client);
    assert_eq!(troop.until("the end of its connections", said).await, "\"idle\"");
    assert!(stop.await.unwrap().unwrap().is_graceful());
}

/// A release that replaces the program's file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_at_the_programs_path_is_what_a_reload_starts_if_that_is_wanted() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("server");
    for (setting, after) in [("on disk", "new\n"), ("image", "")] {
        let out = home.path().join(setting);
        std::fs::copy(env!("CARGO_BIN_EXE_troop-fixture"), &program).unwrap();
        let primary = Command::new(&program)
            .args(["deployed", setting])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut primary = Killed(primary);
        let mut lines = BufReader::new(primary.0.stdout.take().unwrap()).lines();
        let mut until = |text: &str| while !lines.next().unwrap().unwrap().contains(text) {};
        until("listening on");
        // As an installer does it: another file of the same name.
        let new = home.path().join("new");
        let script = format!(
            "#!/bin/sh\necho new >> '{}'\nwhile kill -0 $PPID; do sleep 0.02; done\n",
            out.display()
        );
        std::fs::write(&new, script).unwrap();
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        std::fs::rename(&new, &program).unwrap();
        kill_process(Pid::from_child(&primary.0), Signal::HUP).unwrap();
        until("reload: replacing");
        until(if after.is_empty() { "reload: done" } else { "worker 2 started" });
        wait_until("the new version", || {
            std::fs::read_to_string(&out).unwrap_or_default() == after
        });
        kill_process(Pid::from_child(&primary.0), Signal::QUIT).unwrap();
        primary.0.wait().unwrap();
    }
}
