//! Apps in the background: starting, showing and restarting them, and their output.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::Home;
use troop_testkit::{is_running, talk, wait_until};

/// Says where it listens, and answers with its greeting.
const SERVER: &str = "
const server = require('http').createServer((request, response) => {
  console.log('asked for', request.url);
  response.end(process.env.GREETING ?? 'hello');
});
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => console.error('slot', process.env.NODE_APP_INSTANCE, 'listens'));
";

fn port(shown: &Value) -> u16 {
    let address = shown["listeners"][0]["address"].as_str().unwrap();
    address.rsplit(':').next().unwrap().parse().unwrap()
}

fn get(port: u16) -> String {
    talk(([127, 0, 0, 1], port), "GET /page HTTP/1.0\r\n\r\n")
        .unwrap()
        .rsplit("\r\n")
        .next()
        .unwrap()
        .to_owned()
}

fn pid(shown: &Value) -> u32 {
    u32::try_from(shown["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn an_app_is_started_as_with_pm2_and_waited_for() {
    let home = Home::with(&[("server.js", SERVER)]);
    let out = home.fine(&["start", "server.js", "-i", "2", "--name", "api", "--", "--verbose"]);
    assert!(out.starts_with("api: 2 workers ready on 127.0.0.1:"), "{out}");
    let shown = home.show("api");
    assert_eq!(get(port(&shown)), "hello");
    assert!(shown["workers"].as_array().unwrap().iter().all(|worker| worker["ready"] == true));
    // It is nobody's child any more, and has left the terminal.
    let status = std::fs::read_to_string(format!("/proc/{}/stat", pid(&shown))).unwrap();
    let fields: Vec<&str> = status.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[3], pid(&shown).to_string(), "a session of its own");
    let (code, _, err) = home.troop(&["start", "server.js", "--name", "api"]);
    assert!(code == 1 && err.contains("runs already"), "{code} {err}");
    home.fine(&["stop", "api"]);
    assert!(!is_running(pid(&shown)));
    assert_eq!(home.troop(&["show", "api"]).0, 3);
}

#[test]
fn an_app_that_does_not_become_ready_is_one_clear_error_and_leaves_nothing_behind() {
    let home = Home::with(&[
        ("bad.js", "console.error('no database'); process.exit(3)"),
        ("slow.js", "setTimeout(() => {}, 1e6)"),
    ]);
    let (code, _, err) = home.troop(&["start", "bad.js", "--set", "restart.max=2"]);
    assert!(
        code == 1 && err.contains("exit code 3") && err.contains("no database"),
        "{code} {err}"
    );
    let (code, _, err) = home.troop(&["start", "none.js"]);
    assert!(code == 1 && err.contains("none.js"), "{code} {err}");
    let (code, _, err) = home.troop(&["start", "bad.js", "--set", "recycle.memory=big"]);
    assert!(code == 2 && err.contains("300M"), "{code} {err}");
    let (code, out, _) = home.troop(&["ls", "--json"]);
    assert_eq!((code, out.trim()), (0, "[]"));
    // Nor is anything left of one that takes too long.
    let (code, _, err) =
        home.troop(&["start", "slow.js", "--ready", "listening", "--set", "ready_timeout=0.05"]);
    assert!(code == 1 && err.contains("no worker is ready after 5s"), "{code} {err}");
    assert_eq!(home.fine(&["ls", "--json"]).trim(), "[]");
}

/// An app sends away whoever connects and says nothing for 10 s.
#[test]
fn a_reload_of_all_apps_reaches_those_that_wait_long_for_their_turn() {
    let app = "program = \"sh\"\nargs = [\"-c\", \"sleep 600\"]\nworkers = 1\n";
    let home = Home::with(&[(
        "troop.toml",
        &format!("[app.first]\n{app}min_ready_time = 11\n[app.second]\n{app}min_ready_time = 0\n"),
    )]);
    home.fine(&["start"]);
    let said = home.fine(&["reload", "all"]);
    assert!(
        said.contains("first: 1 worker replaced") && said.contains("second: 1 worker replaced"),
        "{said}"
    );
}

#[test]
fn all_apps_of_a_file_are_started_and_started_again_with_what_it_says_then() {
    let file = |greeting: &str, second: &str| {
        format!(
            "[app.one]\nprogram = \"server.js\"\nworkers = 1\nenv = {{ GREETING = \"{greeting}\" }}\n[app.two]\nprogram = \"server.js\"\nworkers = 1\n{second}"
        )
    };
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", &file("one", ""))]);
    let out = home.fine(&["start"]);
    assert!(out.contains("one: 1 worker ready") && out.contains("two: 1 worker ready"), "{out}");
    let before = home.show("one");
    assert_eq!(get(port(&before)), "one");
    // `grace` needs another start.
    std::fs::write(home.path().join("troop.toml"), file("eins", "grace = 5\n")).unwrap();
    let out = home.fine(&["restart", "all"]);
    assert!(out.contains("one: 1 worker ready") && out.contains("two: 1 worker ready"), "{out}");
    let after = home.show("one");
    assert_eq!(get(port(&after)), "eins");
    // The same process, so that whoever watches it sees nothing.
    assert_eq!(pid(&before), pid(&after));
    assert_ne!(before["workers"][0]["pid"], after["workers"][0]["pid"]);
    assert!(
        home.troop(&["reload", "two"]).2.is_empty()
            || !home.troop(&["reload", "two"]).2.contains("grace")
    );
    home.fine(&["delete", "all"]);
    assert_eq!(home.fine(&["ls", "--json"]).trim(), "[]");
}

#[test]
fn output_of_workers_is_written_to_files_and_shown() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-i", "2", "-n", "web"]);
    get(port(&home.show("web")));
    wait_until("the request in the log", || home.log("web.log").contains("asked for /page"));
    let all = home.fine(&["logs", "web", "--nostream", "-n", "100"]);
    for part in
        [" 0 ! slot 0 listens", " 1 ! slot 1 listens", "| asked for /page", "- * worker 1 started"]
    {
        assert!(all.contains(part), "{part} in {all}");
    }
    let errors = home.fine(&["logs", "web", "--nostream", "--err"]);
    assert!(
        errors.lines().count() == 2 && errors.lines().all(|line| line.contains(" ! slot ")),
        "{errors}"
    );
    let one = home.fine(&["logs", "web", "--nostream", "--err", "--slot", "1", "--json"]);
    let line: Value = serde_json::from_str(one.trim()).unwrap();
    assert_eq!(
        (&line["slot"], &line["stream"], &line["text"]),
        (&1.into(), &"err".into(), &"slot 1 listens".into())
    );
    assert_eq!(
        home.fine(&["logs", "web", "--nostream", "--lines", "1", "--out"]).lines().count(),
        1
    );
    // And when it does not run any more.
    home.fine(&["stop", "web"]);
    assert!(home.fine(&["logs", "web", "--nostream", "-n", "50"]).contains("asked for /page"));
    assert_eq!(home.troop(&["logs", "other"]).0, 3);
    assert_eq!(home.troop(&["logs", "../logs/web"]).0, 3);
    // Also where it was told to write.
    home.fine(&[
        "start",
        "server.js",
        "-i",
        "1",
        "-n",
        "own",
        "-o",
        "own/out.log",
        "-e",
        "own/err.log",
    ]);
    home.fine(&["stop", "own"]);
    let said = home.fine(&["logs", "own", "--nostream", "-n", "50"]);
    assert!(
        said.contains("slot 0 listens")
            && said.contains("worker 1 started")
            && !said.contains("asked for /"),
        "{said}"
    );
    home.fine(&["start", "server.js", "-i", "1", "-n", "web"]);
    home.fine(&["stop", "web"]);
    assert!(
        home.fine(&["logs", "web", "--nostream", "-n", "100"]).contains("asked for /page"),
        "the usual file again"
    );
}

#[test]
fn logs_are_followed_across_a_rotation_and_a_file_that_was_moved_is_made_anew() {
    let chatty = "let n = 0; setInterval(() => console.log('line', n++, 'x'.repeat(20)), 2); require('http').createServer().listen(0)";
    let home = Home::with(&[("chatty.js", chatty)]);
    home.fine(&[
        "start",
        "chatty.js",
        "-i",
        "1",
        "--set",
        "output.rotate_size=4K",
        "--set",
        "output.keep=3",
        "--format",
        "plain",
    ]);
    let mut follower = home
        .command(&["logs", "chatty", "-f", "--lines", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(follower.stdout.take().unwrap()));
    // More than a file holds.
    let numbers: Vec<u32> = lines
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix("line ")?.split(' ').next()?.parse().ok())
        .take(400)
        .collect();
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "lines are missing: {numbers:?}"
    );
    let logs = || std::fs::read_dir(home.path().join("logs")).unwrap().count();
    wait_until("the file and three before it", || logs() == 4);
    // As logrotate does it: moved away, and USR1.
    let (path, moved) = (home.path().join("logs/chatty.log"), home.path().join("moved"));
    std::fs::rename(&path, &moved).unwrap();
    let primary = Pid::from_raw(pid(&home.show("chatty")).cast_signed()).unwrap();
    kill_process(primary, Signal::USR1).unwrap();
    wait_until("the new file", || std::fs::metadata(&path).is_ok_and(|found| found.len() > 0));
    let size = std::fs::metadata(&moved).unwrap().len();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(std::fs::metadata(&moved).unwrap().len(), size);
}

#[test]
fn output_may_have_files_of_its_own_or_be_json_and_a_flood_holds_up_nobody() {
    let flood = "
        const { execSync } = require('child_process');
        execSync('head -c 30000000 /dev/zero | tr \"\\\\0\" x; echo; echo oops >&2', { stdio: 'inherit' });
        require('http').createServer((q, s) => {
            process.stdout.write(Buffer.from([97, 0, 255, 98, 10]), () => s.end('there'));
        }).listen(0, '127.0.0.1')";
    let home = Home::with(&[("flood.js", flood)]);
    home.fine(&[
        "start",
        "flood.js",
        "-i",
        "1",
        "-o",
        "out.log",
        "-e",
        "sub/err.log",
        "--format",
        "json",
        "--set",
        "output.rotate_size=0",
    ]);
    let port = port(&home.show("flood"));
    assert_eq!(get(port), "there");
    let out = || std::fs::read_to_string(home.path().join("out.log")).unwrap_or_default();
    let errors = || std::fs::read_to_string(home.path().join("sub/err.log")).unwrap_or_default();
    wait_until("the errors", || errors().contains("oops"));
    assert_eq!(errors().lines().count(), 1);
    // Lines are dropped while the queue is full.
    wait_until("a line that is no text", || {
        get(port);
        out().contains("a\\u0000\u{fffd}b")
    });
    let text = out();
    // The last line may be incomplete.
    let text = &text[..text.rfind('\n').unwrap()];
    // A line without end is cut into pieces, and a line that is no text does not affect the rest.
    assert!(
        text.lines()
            .all(|line| line.len() < 200_000 && serde_json::from_str::<Value>(line).is_ok())
    );
    let (lost, shown) = (
        home.show("flood")["lost_lines"].as_u64().unwrap(),
        text.lines().filter(|line| line.contains("xxxx")).count() as u64,
    );
    assert!(lost + shown >= 30_000_000 / 65_536, "{lost} lost, {shown} written");
}

#[test]
fn output_in_the_foreground_can_be_prefixed_or_sent_to_the_journal() {
    let home = Home::with(&[(
        "say.js",
        "console.log('first\\nsecond'); console.error('third'); process.exit(0)",
    )]);
    let args = ["run", "-w", "1", "--restart", "never", "--time", "say.js"];
    let (code, out, err) = home.troop(&args);
    assert_eq!(code, 0, "{err}");
    let is_prefixed = |line: &str, text: &str| {
        line.ends_with(text) && line.starts_with("20") && line.contains("Z 0 ")
    };
    let lines: Vec<_> = out.lines().collect();
    assert!(
        lines.len() == 2 && is_prefixed(lines[0], "| first") && is_prefixed(lines[1], "| second"),
        "{out}"
    );
    assert!(err.lines().any(|line| is_prefixed(line, "! third")), "{err}");
    let journal = std::os::unix::net::UnixDatagram::bind(home.path().join("journal")).unwrap();
    let mut command = home.command(&[
        "run",
        "-w",
        "1",
        "--restart",
        "never",
        "--set",
        "output.to=journal",
        "--name",
        "app",
        "say.js",
    ]);
    assert!(
        command
            .env("TROOP_JOURNAL_SOCKET", home.path().join("journal"))
            .output()
            .unwrap()
            .status
            .success()
    );
    journal.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut messages = Vec::new();
    for _ in 0..3 {
        let mut bytes = [0; 1024];
        let len = journal.recv(&mut bytes).unwrap();
        messages.push(String::from_utf8_lossy(&bytes[..len]).into_owned());
    }
    messages.sort();
    assert!(
        messages[0].starts_with("SYSLOG_IDENTIFIER=app\nPRIORITY=4\nTROOP_SLOT=0\nMESSAGE\n")
            && messages[0].ends_with("third\n")
    );
    assert!(
        messages
            .iter()
            .any(|message| message.contains("PRIORITY=6") && message.ends_with("first\n"))
    );
}

#[test]
fn logs_names_the_destination_if_there_are_no_files() {
    let home = Home::with(&[("server.js", SERVER)]);
    let mut command =
        home.command(&["run", "-w", "1", "--log", "json", "--name", "web", "server.js"]);
    let mut primary = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the app", || home.troop(&["show", "web"]).0 == 0);
    let (code, _, err) = home.troop(&["logs", "web"]);
    assert!(
        code == 1 && err.contains("writes no files") && err.contains("terminal"),
        "{code} {err}"
    );
    home.fine(&["stop", "web"]);
    primary.wait().unwrap();
}

#[test]
fn an_app_that_fails_later_is_degraded_and_keeps_restarting() {
    let text = format!("if (require('fs').existsSync('broken')) process.exit(4); {SERVER}");
    let home = Home::with(&[("server.js", &text)]);
    home.fine(&[
        "start",
        "server.js",
        "-i",
        "2",
        "-n",
        "web",
        "--set",
        "restart.max=3",
        "--set",
        "restart.delay=1ms",
        "--set",
        "restart.max_delay=300ms",
        "--set",
        "min_ready_time=0",
    ]);
    std::fs::write(home.path().join("broken"), "").unwrap();
    for worker in home.show("web")["workers"].as_array().unwrap() {
        let pid = Pid::from_raw(i32::try_from(worker["pid"].as_i64().unwrap()).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }
    wait_until("many restarts", || home.show("web")["restarts"].as_u64().unwrap() > 20);
    let web = home.show("web");
    assert_eq!((&web["phase"], &web["ready"]), (&"degraded".into(), &0.into()));
    let list = home.fine(&["ls"]);
    assert!(list.contains("degraded") && list.contains("0/2"), "{list}");
    wait_until("what is missing", || home.fine(&["show"]).contains("no worker, the next one in"));
    assert!(home.fine(&["show"]).contains("last unexpected end: worker"));
    let (code, _, err) = home.troop(&["reload", "web"]);
    assert!(code == 1 && err.contains("exit code 4"), "{code} {err}");
    std::fs::remove_file(home.path().join("broken")).unwrap();
    wait_until("its return", || home.show("web")["phase"] == "running");
    assert_eq!(get(port(&home.show("web"))), "hello");
    wait_until("the line about it", || {
        home.log("web.log").contains("all 2 workers are ready again")
    });
}

#[test]
fn a_start_that_never_becomes_ready_leaves_nothing() {
    let home = Home::with(&[("dies.js", "console.error('no database'); process.exit(4)")]);
    let (code, _, err) = home.troop(&["start", "dies.js", "-i", "2", "--set", "restart.max=3"]);
    assert!(
        code == 1 && err.contains("no worker became ready") && err.contains("exit code 4"),
        "{code} {err}"
    );
    assert!(err.contains("no database"), "{err}");
    assert_eq!(home.fine(&["ls", "--json"]).trim(), "[]");
}

#[test]
fn one_worker_is_replaced_by_its_number() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-i", "2", "-n", "web"]);
    home.fine(&["reload", "web:2"]);
    let workers = home.show("web")["workers"].clone();
    let ids: Vec<_> = workers
        .as_array()
        .unwrap()
        .iter()
        .filter(|w| w["leaving_ms"].is_null())
        .map(|w| w["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids, [1, 3]);
    let (code, _, err) = home.troop(&["reload", "web:9"]);
    assert!(code == 1 && err.contains("no worker 9"), "{code} {err}");
    assert!(home.troop(&["reload", "web:x"]).2.contains("worker's number"));
    let one: Value = serde_json::from_str(&home.fine(&["show", "web:3", "--json"])).unwrap();
    assert_eq!(
        (one[0]["workers"].as_array().unwrap().len(), &one[0]["workers"][0]["id"]),
        (1, &3.into())
    );
    assert!(
        home.troop(&["show", "web:9"]).0 == 1
            && home.fine(&["signal", "web:3", "CONT"]).contains("1 worker")
    );
}

#[test]
fn an_impossible_restart_is_rejected_and_a_stop_overrides_a_restart() {
    let file = "[app.web]\nprogram = \"server.js\"\nworkers = 1\ngrace = 3\n";
    let slow = format!(
        "{SERVER} server.on('request', (q, s) => 0); process.on('disconnect', () => {{}}); setInterval(() => {{}}, 1000);"
    );
    let home = Home::with(&[("server.js", &slow), ("troop.toml", file)]);
    home.fine(&["start", "web"]);
    let before = pid(&home.show("web"));
    std::fs::write(home.path().join("troop.toml"), "[app.web\n").unwrap();
    let (code, _, err) = home.troop(&["restart", "web"]);
    assert!(code == 2 && err.contains("troop.toml"), "{code} {err}");
    // Nor is the name taken for a program.
    let (code, _, err) = home.troop(&["start", "other"]);
    assert!(code == 2 && err.contains("troop.toml"), "{code} {err}");
    assert_eq!(pid(&home.show("web")), before);
    // A version that does not come up is said to be one, and goes on trying: the app had been
    // ready.
    std::fs::write(
        home.path().join("troop.toml"),
        format!("{file}restart = {{ max = 2, delay = \"1ms\", max_delay = \"100ms\" }}\n"),
    )
    .unwrap();
    std::fs::write(home.path().join("server.js"), "process.exit(6)").unwrap();
    let (code, _, err) = home.troop(&["restart", "web"]);
    assert!(code == 1 && err.contains("exit code 6"), "{code} {err}");
    assert_eq!(home.show("web")["phase"], "degraded");
    std::fs::write(home.path().join("server.js"), &slow).unwrap();
    home.fine(&["restart", "web"]);
    // A client that holds on, so that the end takes a while; then somebody wants it for good.
    let held = std::net::TcpStream::connect(("127.0.0.1", port(&home.show("web")))).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut restart = home
        .command(&["restart", "web"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the restart", || {
        home.troop(&["show", "web", "--json"]).1.contains("stopping") || !is_running(before)
    });
    if is_running(before) {
        home.fine(&["stop", "web"]);
        assert_eq!(home.troop(&["show", "web"]).0, 3);
    }
    drop(held);
    restart.wait().unwrap();
}

#[test]
fn options_that_need_a_terminal_are_rejected_in_the_background() {
    let home = Home::with(&[("server.js", SERVER)]);
    for args in [
        &["start", "server.js", "--set", "output.to=terminal"][..],
        &["start", "-w", "0", "server.js"],
    ] {
        let (code, _, err) = home.troop(args);
        assert!(code == 2 && err.contains("no terminal"), "{code} {err}");
    }
    let (code, _, err) =
        home.troop(&["start", "server.js", "--watch", "--set", "watch.paths=[\"nowhere\"]"]);
    assert!(code == 2 && err.contains("cannot watch"), "{code} {err}");
    let (code, _, err) = home.troop(&["start", "server.js", "-e", "/dev/full/x.log"]);
    assert!(code == 2 && err.contains("/dev/full/x.log"), "{code} {err}");
    assert_eq!(home.fine(&["ls", "--json"]).trim(), "[]");
    assert_eq!(home.troop(&["reload", "all"]).0, 3);
    // What is said later is among the logs.
    home.fine(&["start", "server.js", "-n", "web", "-i", "1"]);
    std::fs::write(home.path().join("server.js"), "process.exit(1)").unwrap();
    kill_process(Pid::from_raw(pid(&home.show("web")).cast_signed()).unwrap(), Signal::HUP)
        .unwrap();
    wait_until("the failure in the log", || home.log("web.log").contains("reload failed"));
}

#[test]
fn one_primary_that_does_not_answer_keeps_none_of_the_others() {
    let home = Home::with(&[("server.js", SERVER)]);
    for name in ["a", "b"] {
        home.fine(&["start", "server.js", "-n", name, "-i", "1"]);
    }
    let stopped = troop_testkit::engine(pid(&home.show("a"))).unwrap();
    let stopped = Pid::from_raw(stopped.cast_signed()).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    let (code, out, err) = home.troop(&["stop", "all"]);
    kill_process(stopped, Signal::CONT).unwrap();
    assert!(
        code == 1 && out.contains("b: stopped") && err.contains("is its process stopped?"),
        "{code} {out}{err}"
    );
}

#[test]
fn logs_of_another_users_workers_are_written_where_only_root_can_change_things() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let home = Home::with(&[("server.js", SERVER)]);
    std::fs::create_dir(home.path().join("open")).unwrap();
    rustix::fs::chmod(home.path().join("open"), 0o777.into()).unwrap();
    let (code, _, err) =
        home.troop(&["start", "server.js", "--user", "nobody", "-o", "open/app.log"]);
    assert!(code == 2 && err.contains("others can change"), "{code} {err}");
}

#[test]
fn anything_can_be_set() {
    let home = Home::with(&[
        ("server.js", SERVER),
        ("other.js", &SERVER.replace("'hello'", "process.argv[2] + process.cwd()")),
    ]);
    std::fs::create_dir(home.path().join("sub")).unwrap();
    std::fs::write(
        home.path().join("troop.toml"),
        "[app.web]\nprogram = \"server.js\"\nworkers = 1\n",
    )
    .unwrap();
    home.fine(&[
        "start",
        "web",
        "--set",
        "program=../other.js",
        "--set",
        "args=[\"ZZ\"]",
        "--set",
        "cwd=sub",
        "--set",
        "env.PORT=0",
    ]);
    let answer = get(port(&home.show("web")));
    assert!(answer.starts_with("ZZ") && answer.ends_with("/sub"), "{answer}");
}

#[test]
fn a_log_file_whose_path_has_become_unsafe_is_reported_and_the_primary_goes_on() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let server = "require('http').createServer((q, s) => s.end('there')).listen(0, '127.0.0.1')";
    let home = Home::with(&[("quiet.js", server)]);
    std::fs::create_dir(home.path().join("outside")).unwrap();
    // The worker has to reach its program.
    rustix::fs::chmod(home.path(), 0o755.into()).unwrap();
    home.fine(&["start", "quiet.js", "-i", "1", "--user", "nobody", "-o", "outside/quiet.log"]);
    rustix::fs::chmod(home.path().join("outside"), 0o777.into()).unwrap();
    let primary = Pid::from_raw(pid(&home.show("quiet")).cast_signed()).unwrap();
    kill_process(primary, Signal::USR1).unwrap();
    wait_until("the report", || {
        home.log("quiet.log").contains("lines go on into the file that was open before")
    });
    assert_eq!(get(port(&home.show("quiet"))), "there");
    home.fine(&["stop", "quiet"]);
}
