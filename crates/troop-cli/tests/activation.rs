//! Programs that take sockets by activation.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Home, Running, node, run};
use troop_testkit::{is_running, talk, wait_until};

/// The port of its first socket.
fn port(troop: &Running) -> u16 {
    let mut address = String::new();
    wait_until("the socket", || {
        let app =
            serde_json::from_str::<Value>(&troop.troop(["show", "--json"]).1).unwrap_or_default();
        app[0]["listeners"][0]["address"].as_str().unwrap_or_default().clone_into(&mut address);
        !address.is_empty()
    });
    address.rsplit(':').next().unwrap().parse().unwrap()
}

fn get(port: u16, path: &str) -> Value {
    let answer = talk(([127, 0, 0, 1], port), &format!("GET {path} HTTP/1.0\r\n\r\n")).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn activated(args: &[&str], more: &[&str]) -> Running {
    let program = node("activated.js").display().to_string();
    run(args
        .iter()
        .map(|a| (*a).to_owned())
        .chain([program])
        .chain(more.iter().map(|a| (*a).to_owned())))
}

#[test]
fn a_program_finds_its_sockets_as_systemd_and_einhorn_give_them() {
    let mut troop = activated(
        &["-w", "2", "-b", "web=127.0.0.1:0", "-b", "127.0.0.1:0"],
        &["--fd", "{fd}", "{fd1}", "{other}"],
    );
    let port = port(&troop);
    let answer = get(port, "/");
    assert_eq!(answer["args"], json!(["--fd", "3", "4", "{other}"]));
    let told = (&answer["LISTEN_FDS"], &answer["LISTEN_FDNAMES"], &answer["EINHORN_FD_0"]);
    assert_eq!(told, (&json!("2"), &json!("web:unknown"), &json!("3")));
    assert_eq!(answer["channel"], Value::Null);
    troop.signal(Signal::TERM);
    assert_eq!(troop.end().0, Some(0));
}

/// A worker that has closed its socket finishes its requests; nobody accepts others.
#[test]
fn clients_are_refused_at_the_end_once_no_worker_has_the_socket() {
    for more in [&[][..], &["--policy", "steered"]] {
        let mut args = vec!["-w", "2", "-b", "127.0.0.1:0", "--grace", "10min"];
        args.extend(more);
        let mut troop = activated(&args, &["--stays"]);
        let port = port(&troop);
        let mut workers = BTreeSet::new();
        wait_until("both workers", || {
            workers.insert(get(port, "/")["pid"].as_u64().unwrap() as u32);
            workers.len() == 2
        });
        troop.signal(Signal::TERM);
        let mut refused = None;
        wait_until("a refused client", || {
            refused = TcpStream::connect(("127.0.0.1", port)).err();
            refused.is_some()
        });
        assert_eq!(refused.unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(workers.iter().all(|pid| is_running(*pid)), "{more:?}");
        for pid in workers {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        }
        troop.end();
    }
}

/// They hold the sockets, which would stay bound. The change of user takes away the signal that ends
/// them with the primary.
#[test]
fn workers_that_are_starting_as_another_user_end_with_a_primary_that_is_killed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root starts workers as another user");
        return;
    }
    // No other process has such an argument.
    let own = std::process::id();
    for round in 0..30 {
        let time = format!("1000.{own}{round:02}");
        let args = ["-w", "4", "-b", "127.0.0.1:0", "--user", "nobody", "sleep", &time];
        let troop = run(args.map(str::to_owned));
        let running = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            let commands =
                all.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
            commands
                .filter(|command| command.windows(time.len()).any(|part| part == time.as_bytes()))
        };
        // Itself, its engine and the first of its workers, which has not become another user yet.
        wait_until("a worker", || running().nth(2 + round % 4).is_some());
        troop.signal(Signal::KILL);
        wait_until("the end of all workers", || running().next().is_none());
    }
}

#[test]
fn workers_are_replaced_and_killed_and_no_connection_is_lost() {
    let mut troop = activated(&["-w", "2", "-b", "127.0.0.1:0"], &[]);
    let port = port(&troop);
    get(port, "/");
    let mut slow = TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.write_all(b"GET /slow HTTP/1.0\r\n\r\n").unwrap();
    (0..2).for_each(|_| drop(troop.event("online")));
    let old: BTreeSet<u64> = troop.workers().iter().map(|pid| u64::from(*pid)).collect();
    let clients = std::thread::spawn(move || {
        let mut fresh = BTreeSet::new();
        while fresh.len() < 2 {
            let pid = get(port, "/")["pid"].as_u64().unwrap();
            if !old.contains(&pid) {
                fresh.insert(pid);
            }
        }
    });
    let (code, out, err) = troop.troop(["reload"]);
    assert_eq!((code, out.as_str()), (0, "activated: 2 workers replaced\n"), "{err}");
    clients.join().unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    // The socket is the primary's, so what comes while nobody is there waits.
    assert_eq!(troop.troop(["signal", "KILL"]).0, 0);
    get(port, "/");
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
    assert!(troop.workers().iter().all(|pid| !is_running(*pid)));
}

fn shares(port: u16, count: usize) -> Vec<usize> {
    let mut by_pid = std::collections::BTreeMap::new();
    for _ in 0..count {
        *by_pid.entry(get(port, "/")["pid"].as_u64().unwrap()).or_insert(0) += 1;
    }
    by_pid.into_values().collect()
}

#[test]
fn each_worker_can_have_a_socket_of_its_own_and_an_even_share() {
    let mut troop = activated(
        &["-w", "4", "-b", "127.0.0.1:0", "--policy", "steered", "--set", "min_ready_time=0"],
        &[],
    );
    let port = port(&troop);
    (0..4).for_each(|_| drop(troop.event("online")));
    wait_until("the workers", || troop.troop(["ls"]).1.contains("4/4"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    // By chance, but each with the same: 4 standard deviations.
    let parts = shares(port, 400);
    assert!(parts.len() == 4 && parts.iter().all(|part| part.abs_diff(100) <= 35), "{parts:?}");
    // While workers die, are replaced, come and go, nobody waits for one that is not there.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut served = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    get(port, "/");
                    served += 1;
                }
                served
            })
        })
        .collect();
    for args in [&["reload"][..], &["scale", "2"], &["scale", "6"], &["reload"], &["scale", "3"]] {
        let (code, _, err) = troop.troop(args);
        assert_eq!(code, 0, "{args:?} {err}");
        std::thread::sleep(std::time::Duration::from_millis(1300));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(served > 100, "{served}");
    let parts = shares(port, 300);
    assert!(parts.len() == 3 && parts.iter().all(|part| part.abs_diff(100) <= 35), "{parts:?}");
    // What waits for one that was killed is served by its successor.
    assert_eq!(troop.troop(["signal", "KILL"]).0, 0);
    (0..10).for_each(|_| drop(get(port, "/")));
}

#[test]
fn workers_do_not_outlive_a_primary_that_is_killed() {
    let mut troop = activated(&["-w", "2", "-b", "127.0.0.1:0"], &[]);
    get(port(&troop), "/");
    (0..2).for_each(|_| drop(troop.event("online")));
    troop.signal(Signal::KILL);
    wait_until("the end of the workers", || troop.workers().iter().all(|pid| !is_running(*pid)));
}

#[test]
fn a_server_in_another_language_is_served() {
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let troop =
        run(["-w", "2", "-b", "127.0.0.1:0", "python3", node("activated.py").to_str().unwrap()]);
    let pid = get(port(&troop), "/");
    assert!(pid.as_u64().is_some_and(|pid| is_running(u32::try_from(pid).unwrap())), "{pid}");
}

/// Node's server waits by `epoll`, Python's in `accept` or `select`, gunicorn's in its children.
#[test]
fn a_release_that_fails_or_hangs_before_it_serves_replaces_nobody() {
    let server = |before: &str| {
        format!(
            "{before}; require('http').createServer((q, s) => s.end('fine')).listen({{ fd: 3 }}); process.on('SIGTERM', () => process.exit(0))"
        )
    };
    for policy in ["shared", "steered"] {
        let home = Home::with(&[("server.js", &server(""))]);
        let set = ["--set", "ready_timeout=3", "--set", "min_ready_time=0"];
        let start =
            ["start", "node", "-i", "2", "-b", "127.0.0.1:0", "-n", "web", "--policy", policy];
        home.fine(&[&start, &set[..], &["--", "server.js"]].concat());
        let address = home.show("web")["listeners"][0]["address"].as_str().unwrap().to_owned();
        let port = address.rsplit(':').next().unwrap().parse().unwrap();
        let is_served = || {
            let answer = talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap();
            assert!(answer.ends_with("fine"), "{answer:?}");
        };
        is_served();
        // Both are older than the minimum uptime of one second by then.
        let fails = "setTimeout(() => process.exit(7), 1500); return";
        // Node waits in `epoll`, but not for connections.
        let hangs = "setInterval(() => {}, 1000); return";
        for (before, reason) in [
            (fails, "exit code 7"),
            (hangs, "not ready after 3 s (it does not wait for connections"),
        ] {
            std::fs::write(home.path().join("server.js"), server(before)).unwrap();
            let (code, out, err) = home.troop(&["reload", "web"]);
            assert!(code == 1 && err.contains(reason), "{code} {out}{err}");
            (0..4).for_each(|_| is_served());
        }
        std::fs::write(home.path().join("server.js"), server("")).unwrap();
        home.fine(&["reload", "web"]);
        is_served();
        home.fine(&["stop", "web"]);
    }
}

/// A server that waits by `select`. The worker that finds the file `once` takes it away, and waits
/// by `epoll` until its first connection.
const SELECTS: &str = r"
import os, select, signal, socket
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
listener = socket.socket(fileno=3)
listener.setblocking(False)
try:
    os.remove('once')
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    epoll.poll()
except FileNotFoundError:
    pass
while True:
    select.select([listener], [], [])
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        continue
    client.recv(1000)
    client.sendall(b'HTTP/1.0 200 OK\r\n\r\nfine')
    client.close()
";

#[test]
fn a_worker_that_waits_otherwise_once_prevents_no_reload() {
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let home = Home::with(&[("server.py", SELECTS)]);
    let set = ["--set", "ready_timeout=5", "--set", "min_ready_time=0"];
    let start = ["start", "python3", "-i", "2", "-b", "127.0.0.1:0", "-n", "web"];
    home.fine(&[&start, &set[..], &["--", "server.py"]].concat());
    // Both serve. The successor of one is seen to wait for connections, which is more certain.
    let once = home.path().join("once");
    std::fs::write(&once, "").unwrap();
    let workers = || home.show("web")["workers"].as_array().unwrap().clone();
    let first = workers()[0]["pid"].as_u64().unwrap();
    let first = rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
    rustix::process::kill_process(first, Signal::KILL).unwrap();
    wait_until("its successor", || {
        !once.exists() && workers().iter().filter(|worker| worker["ready"] == true).count() == 2
    });
    for _ in 0..2 {
        let out = home.fine(&["reload", "web"]);
        assert!(out.contains("2 workers replaced"), "{out}");
    }
    home.fine(&["stop", "web"]);
}

#[test]
fn a_release_that_waits_otherwise_than_the_last_one_is_told_what_to_do() {
    if Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let accepts = "import socket\ns = socket.socket(fileno=3)\nwhile True: s.accept()[0].close()";
    let home = Home::with(&[("server.py", accepts)]);
    let set = ["--set", "ready_timeout=6", "--set", "min_ready_time=0"];
    let start = ["start", "python3", "-i", "1", "-b", "127.0.0.1:0", "-n", "web"];
    home.fine(&[&start, &set[..], &["--", "server.py"]].concat());
    std::fs::write(home.path().join("server.py"), SELECTS).unwrap();
    let (code, out, err) = home.troop(&["reload", "web"]);
    let advice = ["it waits in select", "restart the app", "ready = \"notify\""];
    assert!(code == 1 && advice.iter().all(|part| err.contains(part)), "{code} {out}{err}");
    home.fine(&["restart", "web"]);
    home.fine(&["reload", "web"]);
    home.fine(&["stop", "web"]);
}

#[test]
fn addresses_that_cannot_be_bound_are_reported_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, log) = run(["-b", &address, "true"]).end();
    assert!(
        code == Some(1) && log.contains(&format!("cannot listen on {address}: Address")),
        "{log}"
    );
    for policy in ["p2c", "auto"] {
        let (code, log) = run(["-b", "8000", "--policy", policy, "true"]).end();
        assert!(code == Some(2) && log.contains("there is no policy but"), "{log}");
    }
    let (code, log) = run(["-b", "udp:127.0.0.1:0", "--policy", "steered", "true"]).end();
    assert!(code == Some(1) && log.contains("only TCP"), "{log}");
    // Nor where one is typed and the other is in a file.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("troop.toml");
    std::fs::write(&file, "[app.web]\nprogram = \"true\"\nbind = [\"127.0.0.1:0\"]\n").unwrap();
    let (code, log) = run(["-c", file.to_str().unwrap(), "--policy", "p2c"]).end();
    assert!(code == Some(2) && log.contains("there is no policy"), "{log}");
}
