//! Processes that workers have started and that have left their process group, and the sockets that
//! such processes hold.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};
use support::{Home, Running, run, start};
use tempfile::TempDir;
use troop_testkit::{TEST_TIMEOUT, is_running, wait_until};

/// Starts a process in a session of its own, and says its number. What it is started with comes
/// before.
const STARTS: &str = "
    const child = require('child_process').spawn(program[0], program.slice(1), { detached: true, stdio: 'ignore', env });
    child.unref();
    require('fs').writeFileSync(__dirname + '/pid.new', String(child.pid));
    require('fs').renameSync(__dirname + '/pid.new', __dirname + '/pid');
    require('http').createServer((q, s) => s.end('x')).listen(0, '127.0.0.1');";

/// An app, and a process that has a life of its own.
struct Scene {
    app: Running,
    directory: TempDir,
}

impl Scene {
    fn start(before: &str, options: &[&str]) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.js");
        std::fs::write(&path, format!("{before}{STARTS}")).unwrap();
        let path = path.display().to_string();
        let mut args = vec!["-w", "1", "--set", "min_ready_time=0"];
        args.extend(options.iter().copied().chain([path.as_str()]));
        let mut app = run(args);
        app.listening(1);
        Scene { app, directory }
    }

    /// The process that the last worker has started.
    fn child(&self) -> Started {
        self.last_child().expect("it has started one")
    }

    fn last_child(&self) -> Option<Started> {
        let text = std::fs::read_to_string(self.directory.path().join("pid")).ok()?;
        Some(Started(text.parse().ok()?))
    }

    fn stop(&mut self) {
        let (code, _, text) = self.app.troop(["stop", "app"]);
        assert_eq!(code, 0, "{text}");
        assert_eq!(self.app.end().0, Some(0));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(self.last_child());
    }
}

/// A process that does not outlive the test.
struct Started(u32);

impl Started {
    fn is_running(&self) -> bool {
        is_running(self.0)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.0.cast_signed())
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SLEEP: &str = "const program = ['sleep', '1000'], { env } = process;";

#[test]
fn a_process_with_a_session_of_its_own_ends_with_its_worker() {
    let mut scene = Scene::start(SLEEP, &[]);
    // One that is killed.
    let first = scene.child();
    let worker = Pid::from_raw(scene.app.workers()[0].cast_signed()).unwrap();
    kill_process(worker, Signal::KILL).unwrap();
    wait_until("the end of what the worker left behind", || !first.is_running());
    // One that is replaced.
    scene.app.listening(1);
    let second = scene.child();
    assert!(second.is_running());
    assert_eq!(scene.app.troop(["reload"]).0, 0);
    wait_until("the end of what the old worker left behind", || !second.is_running());
    // A stop waits for the end of what they leave behind.
    let third = scene.child();
    assert!(third.is_running());
    scene.stop();
    assert!(!third.is_running());
}

#[test]
fn one_that_ignores_the_first_signal_is_killed() {
    let mut scene = Scene::start(
        "const program = ['sh', '-c', 'trap \"\" TERM; echo > \"$0\"; while :; do sleep 1; done', __dirname + '/trapped'], { env } = process;",
        &["--grace", "2"],
    );
    let child = scene.child();
    wait_until("its trap", || scene.directory.path().join("trapped").exists());
    scene.stop();
    assert!(!child.is_running());
}

#[test]
fn it_survives_without_the_variable_or_if_that_is_wanted() {
    let without = "const program = ['sleep', '1000'], env = { ...process.env }; if (!env.TROOP_TREE) throw new Error('no token'); delete env.TROOP_TREE;";
    let not_wanted = "if (process.env.TROOP_TREE) throw new Error('a token');";
    for (before, options) in [
        (without.to_owned(), &[][..]),
        (format!("{not_wanted}{SLEEP}"), &["--set", "kill_mode=group"][..]),
    ] {
        let mut scene = Scene::start(&before, options);
        let child = scene.child();
        scene.stop();
        assert!(child.is_running(), "{before}");
    }
}

/// What a program below a shell says when the app stops.
fn says_below_a_shell(options: &[&str]) -> String {
    let program = "
import signal, sys, time
def say(number, _):
    print('got', signal.Signals(number).name, flush=True)
    sys.exit(0)
for name in ('SIGINT', 'SIGTERM', 'SIGQUIT'): signal.signal(getattr(signal, name), say)
open('up', 'w').close()
time.sleep(1000)";
    let home = Home::with(&[("consumer.py", program)]);
    let start = ["start", "--name", "web", "--grace", "20", "--set", "min_ready_time=0"];
    home.fine(&[&start, options, &["sh", "--", "-c", "python3 consumer.py; echo end"]].concat());
    wait_until("its handlers", || home.path().join("up").exists());
    home.fine(&["stop", "web"]);
    home.fine(&["logs", "web", "--nostream", "--raw"])
}

#[test]
fn a_program_below_a_shell_gets_the_stop_signal_that_a_shell_waits_after() {
    for mode in ["kill_mode=tree", "kill_mode=group"] {
        let says = says_below_a_shell(&["--set", "stop_signal=INT", "--set", mode]);
        assert!(says.contains("got SIGINT") && !says.contains("SIGTERM"), "{mode}: {says}");
    }
    // A shell that ends by it leaves its program behind, which is asked then.
    let says = says_below_a_shell(&["--set", "stop_signal=QUIT"]);
    assert!(says.contains("got SIGTERM"), "{says}");
}

#[test]
fn the_whole_group_gets_the_stop_signal_where_that_is_wanted_and_no_other() {
    let says = says_below_a_shell(&["--set", "stop_signal=QUIT", "--set", "stop_group=true"]);
    assert!(says.contains("got SIGQUIT") && !says.contains("SIGTERM"), "{says}");
}

/// Only root can start one.
#[test]
fn a_process_of_another_user_that_has_copied_the_token_is_left_alone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return;
    }
    let mut scene = Scene::start(SLEEP, &[]);
    let child = scene.child();
    let environment = std::fs::read(format!("/proc/{}/environ", child.0)).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let token = environment.split('\0').find_map(|entry| entry.strip_prefix("TROOP_TREE="));
    let copy = |uid: Option<u32>| {
        let mut command = Command::new("sleep");
        command.arg("1000").env("TROOP_TREE", token.unwrap());
        if let Some(uid) = uid {
            command.uid(uid);
        }
        Killed(command.spawn().unwrap())
    };
    let (mut same, mut other) = (copy(None), copy(Some(65_534)));
    scene.stop();
    assert!(!child.is_running());
    assert!(other.0.try_wait().unwrap().is_none());
    // That is why it matters.
    wait_until("the end of one of the same user", || same.0.try_wait().unwrap().is_some());
}

/// A deployment that runs under `troop` may start others.
#[test]
fn an_app_that_a_worker_starts_in_the_background_outlives_it() {
    let mut scene = Scene::start(
        "require('fs').writeFileSync(__dirname + '/other.js', \"require('http').createServer((q, s) => s.end('x')).listen(0, '127.0.0.1');\");
        process.env.TROOP_LOG_DIR = __dirname;
        const troop = process.env.TROOP_BINARY;
        const { NODE_UNIQUE_ID, NODE_CHANNEL_FD, ...clean } = process.env;
        require('child_process').execFileSync(troop, ['start', __dirname + '/other.js', '-n', 'other', '-w', '1'], { env: clean });
        const program = ['sleep', '1000'], { env } = process;",
        &["--env", concat!("TROOP_BINARY=", env!("CARGO_BIN_EXE_troop"))],
    );
    let shown: serde_json::Value =
        serde_json::from_str(&scene.app.troop(["show", "other", "--json"]).1).unwrap();
    let other = Started(shown[0]["pid"].as_u64().unwrap().try_into().unwrap());
    let (code, _, text) = scene.app.troop(["stop", "app"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(scene.app.end().0, Some(0));
    assert!(other.is_running());
    assert_eq!(scene.app.troop(["stop", "other"]).0, 0);
}

/// Leaves a process behind that has the socket, and serves nobody.
const LEAVES: &str = "#!/bin/sh\nsetsid sleep 1000 & echo $! > \"$1\"\nexec sleep 1000\n";

fn leaves_a_socket(mut command: Command, directory: &TempDir, bind: &str) -> (Running, Started) {
    let (program, pid) = (directory.path().join("leaves"), directory.path().join("pid"));
    std::fs::write(&program, LEAVES).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    command.args(["--log", "json", "-w", "1", "--grace", "5", "--set", "kill_mode=group"]);
    command.args(["-b", bind]).args([&program, &pid]);
    let mut app = start(command);
    app.event("online");
    let mut number = None;
    wait_until("the process", || {
        number = std::fs::read_to_string(&pid).ok().and_then(|text| text.trim().parse().ok());
        number.is_some()
    });
    (app, Started(number.unwrap()))
}

#[test]
fn clients_are_refused_after_the_end_although_a_process_has_a_copy_of_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let port = troop_testkit::free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.arg("run");
    let (mut app, stray) = leaves_a_socket(command, &directory, &format!("127.0.0.1:{port}"));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_eq!(app.troop(["stop"]).0, 0);
    app.end();
    assert!(stray.is_running());
    let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_socket_from_outside_is_not_shut_down() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let mut command = Command::new("sh");
    let exec = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&{}", listener.as_raw_fd());
    command.args(["-c", &exec, env!("CARGO_BIN_EXE_troop"), "run"]);
    let (mut app, _stray) = leaves_a_socket(command, &directory, "systemd");
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC).unwrap();
    assert_eq!(app.troop(["stop"]).0, 0);
    app.end();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_ok());
}

/// A cluster that runs below a worker, whose own worker ignores `SIGTERM`.
#[test]
fn workers_of_a_cluster_below_a_worker_end_with_that_one() {
    let mut scene = Scene::start(
        "const { NODE_UNIQUE_ID, NODE_CHANNEL_FD, ...env } = process.env;
        const ignores = 'trap \"\" TERM; echo $$ > \"$0.new\"; mv \"$0.new\" \"$0\"; while :; do sleep 1; done';
        const program = [env.TROOP_BINARY, 'run', '-b', '127.0.0.1:0', '-w', '1', '-n', 'inner', '--', 'sh', '-c', ignores, __dirname + '/inner'];",
        &["--env", concat!("TROOP_BINARY=", env!("CARGO_BIN_EXE_troop")), "--grace", "3"],
    );
    let primary = scene.child();
    let mut pid = None;
    wait_until("the inner worker", || {
        let text = std::fs::read_to_string(scene.directory.path().join("inner")).ok();
        pid = text.and_then(|text| text.trim().parse().ok());
        pid.is_some()
    });
    let worker = Started(pid.unwrap());
    scene.stop();
    assert!(!primary.is_running() && !worker.is_running());
}

/// A server that a shell has started, which ends at once when it is to finish.
#[test]
fn what_a_worker_has_started_has_its_grace_period_to_finish() {
    let directory = tempfile::tempdir().unwrap();
    let server = "
        const server = require('http').createServer((q, s) => {
            if (q.url === '/slow') setTimeout(() => s.end('whole'), 4000);
            else s.end('x');
        });
        server.listen({ fd: 3 });
        process.on('SIGTERM', () => server.close());";
    std::fs::write(directory.path().join("server.js"), server).unwrap();
    let port = troop_testkit::free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1", "-b", &format!("127.0.0.1:{port}"), "--"]);
    command.args(["sh", "-c", "node server.js; true"]).current_dir(directory.path());
    let mut app = start(command);
    app.event("online");
    let ask = move |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let whole = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let slow = ask("/slow");
    // The server is past the other one.
    assert!(whole(ask("/")).ends_with('x'));
    assert_eq!(app.troop(["stop"]).0, 0);
    app.end();
    assert!(whole(slow).ends_with("whole"));
}

/// Who stops an app a second time does not wait for what its workers have left behind.
#[test]
fn a_second_stop_ends_what_is_left_behind() {
    let mut scene = Scene::start(
        "const program = ['sh', '-c', 'trap \"\" TERM; echo > \"$0\"; while :; do sleep 1; done', __dirname + '/trapped'], { env } = process;",
        &["--grace", "1000"],
    );
    let child = scene.child();
    wait_until("its trap", || scene.directory.path().join("trapped").exists());
    let worker = scene.app.workers()[0];
    scene.app.signal(Signal::TERM);
    wait_until("the end of the worker", || !is_running(worker));
    assert!(child.is_running());
    scene.app.signal(Signal::QUIT);
    scene.app.end();
    assert!(!child.is_running());
}
