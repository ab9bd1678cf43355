//! The program `troop` with few descriptors: a greedy worker, clients that have to wait, and clients
//! of the control socket that keep others out.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use troop_testkit::{TEST_TIMEOUT, free_port, is_running, talk};

use crate::scene::ONLINE;
use crate::support::troop;

const MIB: usize = 1 << 20;

/// `troop run` with a limit on open files, and the lines that it writes.
struct Running {
    child: Child,
    home: TempDir,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let pids: Vec<_> = self
            .seen
            .iter()
            .filter(|event| event["event"] == "fork")
            .filter_map(|e| e["pid"].as_i64())
            .collect();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in pids {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Running {
    fn with_files(files: usize, args: &[&str]) -> Running {
        let home = tempfile::tempdir().unwrap();
        let mut command = troop(home.path(), &["run", "--log", "json", "--name", "web"]);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut limited = std::process::Command::new("sh");
        limited
            .args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")])
            .arg(command.get_program())
            .args(command.get_args());
        limited
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .current_dir(home.path());
        limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = limited.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap_or(Value::String(line))).is_err()
                {
                    return;
                }
            }
        });
        Running { child, home, lines, seen: Vec::new() }
    }

    fn until(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(event) = self.lines.recv_timeout(left) else {
                let seen: Vec<String> =
                    self.seen.iter().rev().take(40).rev().map(Value::to_string).collect();
                panic!("no {what}; seen:\n{}", seen.join("\n"))
            };
            self.seen.push(event.clone());
            if wanted(&event) {
                return event;
            }
        }
    }

    fn show(&self) -> Value {
        let begun = Instant::now();
        let output = troop(self.home.path(), &["show", "web", "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "`troop show` took {:?}",
            begun.elapsed()
        );
        serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap().remove(0)
    }

    /// The keeper and its engine, which are the same program.
    fn processes(&self) -> Vec<u32> {
        let keeper = self.child.id();
        let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        let engine = children.filter(|pid| program(*pid) == program(keeper));
        std::iter::once(keeper).chain(engine).collect()
    }

    /// The descriptors of the one that has the most.
    fn descriptors(&self) -> usize {
        let of = |pid| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.processes().into_iter().map(of).max().unwrap_or_default()
    }

    /// CPU time that the primary takes while nothing happens.
    fn cpu(&self, during: Duration) -> Duration {
        let of = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let used = || self.processes().into_iter().map(of).sum::<u64>();
        let before = used();
        std::thread::sleep(during);
        Duration::from_millis((used() - before) * 10)
    }
}

fn is_served(port: u16) -> bool {
    talk(([127, 0, 0, 1], port), "").is_ok_and(|answer| !answer.is_empty())
}

#[test]
fn a_worker_that_takes_all_descriptors_does_not_affect_others() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    // Its share, and as much beyond it as a worker may ask for before it is ended.
    let greedy = r#"each 100 {"cmd":"NODE_CLUSTER","act":"queryServer","seq":#,"index":#,"address":"127.0.0.1","port":0,"addressType":4}"#;
    let listening = r#"line {"cmd":"NODE_CLUSTER","act":"listening","seq":1,"address":"127.0.0.1","port":0,"addressType":4}"#;
    let fixture = env!("CARGO_BIN_EXE_troop-fixture");
    let args =
        ["-w", "2", fixture, "--", "divided", &address, ONLINE, greedy, listening, "sleep 600000"];
    let mut troop = Running::with_files(256, &args);
    let (mut serves, mut offends) = (false, false);
    troop.until("an honest worker and an offence of the other", |event| {
        serves |= event["event"] == "listening" && event["port"] == port;
        offends |= event["event"] == "misbehaved"
            && event["text"].as_str().is_some_and(|text| text.contains("its share"));
        serves && offends
    });
    let app = troop.show();
    let listeners: Vec<u16> = app["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|listener| listener["address"].as_str()?.rsplit_once(':')?.1.parse().ok())
        .filter(|other| *other != port)
        .collect();
    assert!((8..60).contains(&listeners.len()), "{} listeners of 256 descriptors", listeners.len());
    // Clients that it never takes.
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..20 {
        clients.extend(
            listeners.iter().filter_map(|port| TcpStream::connect(("127.0.0.1", *port)).ok()),
        );
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(troop.descriptors() < 230, "{} of 256 descriptors are in use", troop.descriptors());
    for _ in 0..20 {
        assert!(is_served(port), "the sibling's clients are served");
    }
    // The sibling is killed, and comes back.
    let pid = troop.show()["workers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|worker| worker["slot"] == 1)
        .unwrap()["pid"]
        .as_u64()
        .unwrap();
    let pid = i32::try_from(pid).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    troop.until("the next one", |event| event["event"] == "listening" && event["port"] == port);
    assert!(is_served(port));
    let cpu = troop.cpu(Duration::from_secs(2));
    assert!(
        cpu < Duration::from_millis(400),
        "the primary uses {cpu:?} of CPU in two seconds in which nothing happens"
    );
    drop(clients);
    assert!(is_served(port));
    troop.show();
}

#[test]
fn clients_wait_while_descriptors_are_scarce_and_it_is_reported_once() {
    let port = free_port();
    let mut troop = Running::with_files(
        64,
        &[
            "-w",
            "2",
            env!("CARGO_BIN_EXE_troop-fixture"),
            "--",
            "line",
            &format!("127.0.0.1:{port}"),
        ],
    );
    let mut pids = Vec::new();
    while pids.len() < 2 {
        let event = troop.until("the workers", |event| event["event"] == "listening");
        pids.push(i32::try_from(event["pid"].as_i64().unwrap()).unwrap());
    }
    let signal = |signal| {
        pids.iter().for_each(|pid| {
            rustix::process::kill_process(rustix::process::Pid::from_raw(*pid).unwrap(), signal)
                .unwrap()
        });
    };
    let since = Instant::now();
    // They take nothing, and neither does the kernel of what the primary leaves there.
    signal(rustix::process::Signal::STOP);
    let clients: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let cpu = troop.cpu(Duration::from_secs(2));
    assert!(
        cpu < Duration::from_millis(400),
        "the primary uses {cpu:?} of CPU in two seconds while clients wait"
    );
    assert!(troop.descriptors() < 60, "{} of 64 descriptors are in use", troop.descriptors());
    troop.show();
    signal(rustix::process::Signal::CONT);
    for mut client in clients {
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("nobody is turned away");
        assert!(!answer.is_empty(), "nobody is turned away");
    }
    while let Ok(event) = troop.lines.try_recv() {
        troop.seen.push(event);
    }
    let said: Vec<&str> = troop
        .seen
        .iter()
        .filter_map(|event| event["text"].as_str().filter(|text| text.contains("open files")))
        .collect();
    let elapsed = since.elapsed();
    let most = 1 + elapsed.as_secs() / 10;
    assert!(said.len() as u64 <= most, "within {elapsed:.1?}, a shortage is said as {said:#?}");
}

// ---- the control socket ----

#[test]
fn three_thousand_silent_clients_lock_no_other_out_of_the_control_socket() {
    let port = free_port();
    let mut troop = Running::with_files(
        256,
        &[
            "-w",
            "1",
            env!("CARGO_BIN_EXE_troop-fixture"),
            "--",
            "line",
            &format!("127.0.0.1:{port}"),
        ],
    );
    troop.until("the worker", |event| event["event"] == "listening");
    let path = troop.home.path().join("run/web.sock");
    let mut silent = Vec::new();
    // More than a process may have open by default.
    let _ = troop_sys::process::raise_descriptor_limit();
    for n in 0..3000 {
        let mut stream = UnixStream::connect(&path).unwrap();
        if n % 3 == 0 {
            // Half a request.
            let _ = stream.write_all(b"{\"troop\":1,");
        }
        silent.push(stream);
    }
    let mut quickest = TEST_TIMEOUT;
    for _ in 0..5 {
        let begun = Instant::now();
        let output = crate::support::troop(troop.home.path(), &["ls"]).output().unwrap();
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("web"),
            "{output:?}"
        );
        quickest = quickest.min(begun.elapsed());
    }
    // Of several, since the machine may be busy with something else.
    assert!(quickest < Duration::from_secs(1), "`troop ls` took {quickest:?}");
    assert!(troop.descriptors() < 100, "{} descriptors", troop.descriptors());
    assert!(is_served(port));
}

#[test]
fn control_clients_that_do_not_read_are_bounded_and_block_no_other() {
    let port = free_port();
    let chatter =
        r#"repeat 400000 {"a":"message that nobody reads, and that is repeated without end"}"#;
    let fixture = env!("CARGO_BIN_EXE_troop-fixture");
    let address = format!("127.0.0.1:{port}");
    let args = [
        "-w",
        "2",
        fixture,
        "--",
        "divided",
        &address,
        ONLINE,
        "sleep 1500",
        chatter,
        "sleep 600000",
    ];
    let mut troop = Running::with_files(256, &args);
    troop.until("the honest worker", |event| event["event"] == "listening");
    let path = troop.home.path().join("run/web.sock");
    let followers: Vec<_> = (0..30)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"{\"troop\":1,\"do\":\"events\"}\n").unwrap();
            stream
        })
        .collect();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", troop.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    };
    let (mut most, deadline) = (0, Instant::now() + Duration::from_secs(5));
    while Instant::now() < deadline {
        most = most.max(resident());
        assert_eq!(troop.show()["name"], "web");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(most < 160 * MIB, "{} MiB with followers that read nothing", most / MIB);
    assert!(is_served(port) && is_running(troop.child.id()));
    drop(followers);
}
