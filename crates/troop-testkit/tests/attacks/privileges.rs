//! What a worker of another user inherits: terminal, capabilities, environment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use troop_testkit::wait_until;

use crate::running::{Running, file, open_directory};
use crate::support::{STRANGER, is_root, troop, troop_program};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

/// `troop run` with one worker and these options and program, as JSON lines.
fn run(home: &Path, args: &[&str]) -> Running {
    let mut command = troop(home, &[&["run", "--log", "json", "-w", "1"], args].concat());
    Running::start(&mut command)
}

fn stranger() -> String {
    STRANGER.to_string()
}

/// The lines of `/proc/PID/status`.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.into(), value.trim().into()))
        .collect()
}

/// The session of a process, and its controlling terminal.
fn session(pid: u32) -> (u32, i32) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[3].parse().unwrap(), fields[4].parse().unwrap())
}

const NONE: &str = "0000000000000000";

/// A primary that has capabilities to pass on, as a careless container gives them.
fn with_capabilities(home: &Path, args: &[&str]) -> Running {
    let troop_program = troop_program();
    let mut command = Command::new("setpriv");
    command.args([
        "--inh-caps=+net_bind_service,+sys_admin",
        "--ambient-caps=+net_bind_service,+sys_admin",
    ]);
    command
        .arg(&troop_program)
        .args(["run", "--log", "json", "-w", "1"])
        .args(args)
        .current_dir(home)
        .stdin(Stdio::null());
    command.env("TROOP_RUNTIME_DIR", home.join("run"));
    Running::start(&mut command)
}

#[test]
fn a_worker_of_another_user_has_none_of_the_primarys_streams() {
    if !is_root("privileges::a_worker_of_another_user_has_none_of_the_primarys_streams") {
        return;
    }
    let (home, user) = (open_directory(), stranger());
    // A file of the primary, which any process with its descriptor can empty.
    let output = home.path().join("output");
    let streams = "for n in 0 1 2; do readlink /proc/self/fd/$n; done; echo that is all; sleep 600";
    let mut command = troop(
        home.path(),
        &[
            "run", "--log", "json", "-w", "1", "--user", &user, "--group", &user, "--", "sh", "-c",
            streams,
        ],
    );
    command.stdin(File::open("/etc/passwd").unwrap()).stdout(File::create(&output).unwrap());
    let _troop = Running::start(&mut command);
    wait_until("what the worker prints", || file(&output).contains("that is all"));
    let lines = file(&output);
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines[0], "/dev/null");
    assert!(lines[1].starts_with("pipe:[") && lines[2].starts_with("pipe:["), "{lines:?}");
}

#[test]
fn a_worker_of_another_user_has_no_capabilities_and_gets_none() {
    if !is_root("privileges::a_worker_of_another_user_has_no_capabilities_and_gets_none") {
        return;
    }
    let (home, user) = (open_directory(), stranger());
    let mut troop = with_capabilities(
        home.path(),
        &["--user", &user, "--group", &user, FIXTURE, "line", "127.0.0.1:0"],
    );
    troop.event("listening");
    let worker = troop.workers[0];
    let status = status(worker);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], NONE, "{set}");
    }
    assert_eq!((status["NoNewPrivs"].as_str(), status["Groups"].as_str()), ("1", ""));
    for ids in ["Uid", "Gid"] {
        assert_eq!(status[ids].split_whitespace().collect::<Vec<_>>(), [user.as_str(); 4]);
    }
    assert_eq!(session(worker), (worker, 0), "a session of its own, without a terminal");
}

#[test]
fn new_privileges_can_be_allowed_and_capabilities_are_gone_all_the_same() {
    if !is_root("privileges::new_privileges_can_be_allowed_and_capabilities_are_gone_all_the_same")
    {
        return;
    }
    let (home, user) = (open_directory(), stranger());
    let options = [
        "--user",
        &user,
        "--group",
        &user,
        "--set",
        "no_new_privileges=false",
        FIXTURE,
        "line",
        "127.0.0.1:0",
    ];
    let mut troop = with_capabilities(home.path(), &options);
    troop.event("listening");
    let status = status(troop.workers[0]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], NONE, "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "0");
    assert_ne!(status["CapBnd"], NONE);
}

#[test]
fn a_worker_of_the_same_user_can_be_kept_from_new_privileges() {
    let home = open_directory();
    let mut troop =
        run(home.path(), &["--set", "no_new_privileges=true", FIXTURE, "line", "127.0.0.1:0"]);
    troop.event("listening");
    let status = status(troop.workers[0]);
    assert_eq!((status["NoNewPrivs"].as_str(), status["CapInh"].as_str()), ("1", NONE));
}

#[test]
fn a_setuid_program_makes_no_worker_root() {
    if !is_root("privileges::a_setuid_program_makes_no_worker_root") {
        return;
    }
    let (home, user) = (open_directory(), stranger());
    let id = home.path().join("id");
    std::fs::copy("/usr/bin/id", &id).unwrap();
    std::fs::set_permissions(&id, std::fs::Permissions::from_mode(0o4755)).unwrap();
    for (allowed, expected) in [(false, user.as_str()), (true, "0")] {
        let out = home.path().join(format!("{allowed}"));
        let script =
            format!("{} -u > {1}.new; mv {1}.new {1}; sleep 60", id.display(), out.display());
        let setting = format!("no_new_privileges={}", !allowed);
        let name = format!("name-{allowed}");
        let options = [
            "--name", &name, "--user", &user, "--group", &user, "--set", &setting, "--", "sh",
            "-c", &script,
        ];
        let _troop = run(home.path(), &options);
        assert_eq!(file(&out).trim(), expected, "setuid allowed: {allowed}");
    }
}

/// The environment of a worker with these options.
fn environment(home: &Path, options: &[&str]) -> BTreeMap<String, String> {
    let out = home.join("environment");
    let script = format!("env > {0}.new; mv {0}.new {0}; sleep 60", out.display());
    let mut command = troop(
        home,
        &[&["run", "--log", "json", "-w", "1"], options, &["--", "sh", "-c", &script]].concat(),
    );
    command.envs([
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/root"),
        ("MAIL", "/var/mail/root"),
    ]);
    command.envs([("XDG_RUNTIME_DIR", "/run/user/0"), ("OTHER", "stays")]);
    let _troop = Running::start(&mut command);
    let text = file(&out);
    std::fs::remove_file(&out).unwrap();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

#[test]
fn the_environment_names_the_workers_user_and_nothing_of_roots() {
    if !is_root("privileges::the_environment_names_the_workers_user_and_nothing_of_roots") {
        return;
    }
    let home = open_directory();
    let line = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = line.lines().find(|line| line.starts_with("nobody:")).unwrap();
    let fields: Vec<_> = line.split(':').collect();
    let seen = environment(home.path(), &["--user", "nobody"]);
    let of = |name: &str| seen.get(name).map(String::as_str);
    assert_eq!((of("HOME"), of("SHELL")), (Some(fields[5]), Some(fields[6])));
    assert_eq!(
        (of("USER"), of("LOGNAME"), of("OTHER")),
        (Some("nobody"), Some("nobody"), Some("stays"))
    );
    assert_eq!((of("MAIL"), of("XDG_RUNTIME_DIR")), (None, None));

    let seen = environment(
        home.path(),
        &["--user", "nobody", "--env", "HOME=/srv/app", "--env", "MAIL=/srv/mail"],
    );
    let of = |name: &str| seen.get(name).map(String::as_str);
    assert_eq!(
        (of("HOME"), of("MAIL"), of("USER")),
        (Some("/srv/app"), Some("/srv/mail"), Some("nobody"))
    );

    let user = stranger();
    let seen = environment(home.path(), &["--user", &user, "--group", &user]);
    for name in ["HOME", "USER", "LOGNAME", "SHELL", "MAIL", "XDG_RUNTIME_DIR"] {
        assert!(!seen.contains_key(name), "{name}={}", seen[name]);
    }
}

#[test]
fn a_health_command_runs_as_the_workers_do() {
    if !is_root("privileges::a_health_command_runs_as_the_workers_do") {
        return;
    }
    let (home, user) = (open_directory(), stranger());
    let cwd = home.path().join("app");
    std::fs::create_dir(&cwd).unwrap();
    std::fs::set_permissions(&cwd, std::fs::Permissions::from_mode(0o777)).unwrap();
    // What it finds is only left behind whole.
    let command = "(id -u; id -g; id -G; umask; pwd; echo $HOME $APP $TROOP_SLOT; grep -E '^(CapInh|CapBnd|NoNewPrivs)' /proc/self/status; \
                   cut -d' ' -f5-7 /proc/$$/stat; echo $$) > \"$TROOP_WORKER_PID.new\" && mv \"$TROOP_WORKER_PID.new\" seen";
    let text = format!(
        "[app.web]\nprogram = {FIXTURE:?}\nargs = [\"line\", \"127.0.0.1:0\"]\nworkers = 1\nuser = \"{user}\"\ngroup = \"{user}\"\ncwd = \"app\"\n\
         umask = \"027\"\nenv = {{ APP = \"web\" }}\n[app.web.health]\ncommand = {command:?}\nevery = \"50ms\"\n"
    );
    std::fs::write(home.path().join("troop.toml"), text).unwrap();
    let mut command = troop(home.path(), &["run", "--log", "json", "web"]);
    let mut troop = Running::start(command.env("HOME", "/root"));
    troop.event("listening");
    let seen = file(&cwd.join("seen"));
    let lines: Vec<_> = seen.lines().map(str::trim).collect();
    assert_eq!(lines[..5], [&user, &user, &user, "0027", cwd.to_str().unwrap()]);
    assert_eq!(
        lines[5..9],
        ["web 0", &format!("CapInh:\t{NONE}"), &format!("CapBnd:\t{NONE}"), "NoNewPrivs:\t1"]
    );
    let numbers: Vec<_> = lines[9].split_whitespace().collect();
    assert_eq!(
        (numbers[0], numbers[1], numbers[2]),
        (lines[10], lines[10], "0"),
        "group, session, terminal"
    );
}

#[test]
fn a_health_command_that_times_out_is_killed_with_its_children() {
    let home = open_directory();
    let out = home.path().join("pids");
    let command = format!("sleep 600 & echo $! $$ >> {}; yes", out.display());
    let text = format!(
        "[app.web]\nprogram = {FIXTURE:?}\nargs = [\"line\", \"127.0.0.1:0\"]\nworkers = 1\n[app.web.health]\ncommand = {command:?}\n\
         every = \"50ms\"\ntimeout = \"300ms\"\nfailures = 1\n"
    );
    std::fs::write(home.path().join("troop.toml"), text).unwrap();
    let mut troop = Running::start(&mut troop(home.path(), &["run", "--log", "json", "web"]));
    troop.until("did not end within 300ms");
    let ends = |line: &str| {
        for pid in line.split_whitespace() {
            let pid = pid.parse().unwrap();
            wait_until("the end of the command", || !troop_testkit::is_running(pid));
        }
    };
    ends(file(&out).lines().next().unwrap());
    // Also when a worker has started just now and no primary is left to end it.
    let begun = |lines: &str| lines.lines().count();
    let before = begun(&file(&out));
    wait_until("another command", || begun(&file(&out)) > before);
    troop.child.kill().unwrap();
    troop.child.wait().unwrap();
    file(&out).lines().for_each(ends);
}

const NO_TERMINAL: &str = "no terminal";

/// A pseudo terminal: its master and its slave.
fn terminal() -> (File, File) {
    #[expect(unsafe_code, reason = "the tests' only terminal is not worth a wrapper")]
    // SAFETY: the functions of the C library on a descriptor that was just made, and a buffer with
    // its length.
    let (master, slave) = unsafe {
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(
            master >= 0 && libc::grantpt(master) == 0 && libc::unlockpt(master) == 0,
            "a pseudo terminal"
        );
        let mut name = [0; 64];
        assert_eq!(libc::ptsname_r(master, name.as_mut_ptr(), name.len()), 0);
        (
            OwnedFd::from_raw_fd(master),
            std::ffi::CStr::from_ptr(name.as_ptr()).to_str().unwrap().to_owned(),
        )
    };
    let slave = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(slave)
        .unwrap();
    (master.into(), slave)
}

/// Starts a program in a new session with this terminal for all streams, as a shell would; its
/// output can be read from the master.
fn in_terminal(mut command: Command, master: &File, slave: &File) -> Running {
    // Blocking, as terminals are.
    let path = std::fs::read_link(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&slave.as_fd())
    ))
    .unwrap();
    let open = || {
        Stdio::from(
            File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOCTTY)
                .open(&path)
                .unwrap(),
        )
    };
    let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
    Running::reading(child, master.try_clone().unwrap())
}

fn in_session(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(program).args(args);
    command
}

#[test]
fn a_worker_of_another_user_cannot_touch_the_terminal() {
    if !is_root("privileges::a_worker_of_another_user_cannot_touch_the_terminal") {
        return;
    }
    let (home, user) = (open_directory(), stranger());
    let (master, mut slave) = terminal();
    let report = home.path().join("report");
    let user_options = ["--user", &user, "--group", &user];
    let args = [
        &["run", "--log", "json", "-w", "1"],
        &user_options[..],
        &[FIXTURE, "snoop", report.to_str().unwrap()],
    ]
    .concat();
    let mut command = in_session(&troop_program(), &args);
    command.current_dir(home.path()).env("TROOP_RUNTIME_DIR", home.path().join("run"));
    let mut troop = in_terminal(command, &master, &slave);
    let seen: Value = serde_json::from_str(&file(&report)).unwrap();
    assert_eq!(
        seen,
        json!({ "streams": [NO_TERMINAL, NO_TERMINAL, NO_TERMINAL], "by name": null })
    );
    // What it prints is there all the same.
    troop.until("from standard output");
    let typed = slave.read(&mut [0; 100]).map_err(|e| e.kind());
    assert_eq!(
        typed,
        Err(std::io::ErrorKind::WouldBlock),
        "nothing has been typed into the terminal"
    );
    // And Ctrl-C ends it as ever.
    (&master).write_all(b"\x03").unwrap();
    assert_eq!(troop.end(), Some(0), "{:?}", troop.seen);
}

#[test]
fn a_worker_that_a_program_forks_as_another_user_cannot_touch_the_terminal() {
    if !is_root(
        "privileges::a_worker_that_a_program_forks_as_another_user_cannot_touch_the_terminal",
    ) {
        return;
    }
    let (home, user) = (open_directory(), stranger());
    let (master, mut slave) = terminal();
    let report = home.path().join("report");
    let command =
        in_session(Path::new(FIXTURE), &["fork as", &user, "snoop", report.to_str().unwrap()]);
    let troop = in_terminal(command, &master, &slave);
    let seen: Value = serde_json::from_str(&file(&report)).unwrap();
    assert_eq!(
        seen,
        json!({ "streams": [NO_TERMINAL, NO_TERMINAL, NO_TERMINAL], "by name": null })
    );
    assert_eq!(
        slave.read(&mut [0; 100]).map_err(|e| e.kind()),
        Err(std::io::ErrorKind::WouldBlock)
    );
    drop(troop);
}

#[test]
fn ctrl_c_reaches_a_program_that_is_its_own_primary_first_and_its_workers_have_no_input() {
    let (master, slave) = terminal();
    let mut primary =
        in_terminal(in_session(Path::new(FIXTURE), &["own", "127.0.0.1:0"]), &master, &slave);
    let line = (primary.until("listening"), primary.until("listening")).1;
    let port =
        line.trim().rsplit(':').next().unwrap().parse::<u16>().unwrap_or_else(|_| panic!("{line}"));
    let leader = wait_for_child(primary.child.id());
    let workers = troop_testkit::children(leader);
    assert_eq!(workers.len(), 2);
    for worker in &workers {
        assert_eq!(
            std::fs::read_link(format!("/proc/{worker}/fd/0")).unwrap(),
            Path::new("/dev/null")
        );
    }
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(troop_testkit::TEST_TIMEOUT)).unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    (&master).write_all(b"\x03").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "done\n");
    assert_eq!(primary.end(), Some(0));
}

/// `setsid` forks where it leads a group; the program is itself or its child.
fn wait_for_child(pid: u32) -> u32 {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    if name.trim() == "setsid" { troop_testkit::children(pid)[0] } else { pid }
}
