//! Variables that decide which code programs load, and as which user they see themselves: in the
//! configuration, and in the primary's own environment.

use std::path::Path;

use super::home::Home;
use super::running::{Running, file, open_directory};
use super::support::{STRANGER, is_root, troop};

/// What a process was started with.
fn environment(pid: u32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    text.split(|byte| *byte == 0).map(|one| String::from_utf8_lossy(one).into_owned()).collect()
}

/// An app of another user with a health command that reports its identity and its environment.
fn write(home: &Path, env_file: &str) {
    std::fs::write(
        home.join("server.js"),
        "require('http').createServer((q, s) => s.end('hi')).listen(0, '127.0.0.1')\n",
    )
    .unwrap();
    std::fs::write(
        home.join("evil.js"),
        "require('fs').appendFileSync(__dirname + '/loaded', process.getuid() + ' ')\n",
    )
    .unwrap();
    std::fs::write(home.join("env"), env_file).unwrap();
    let command = "(id -u; echo $TROOP_SLOT $TROOP_WORKER $TROOP_WORKER_PID; echo ${LISTEN_FDS-none} ${NODE_CHANNEL_FD-none}) > health.new; mv health.new health";
    let text = format!(
        "[app.web]\nprogram = \"server.js\"\nworkers = 1\nuser = \"{STRANGER}\"\ngroup = \"{STRANGER}\"\nenv_file = [\"env\"]\n\
         [app.web.health]\ncommand = {command:?}\nevery = \"50ms\"\n"
    );
    std::fs::write(home.join("troop.toml"), text).unwrap();
}

#[test]
fn variables_in_the_configuration_reach_workers_and_never_the_primary() {
    if !is_root("environment::variables_in_the_configuration_reach_workers_and_never_the_primary") {
        return;
    }
    let home = open_directory();
    let at = home.path().display();
    let variables = format!(
        "NODE_OPTIONS=--require {at}/evil.js\nLD_PRELOAD={at}/evil.so\nBASH_ENV={at}/evil\nENV={at}/evil\nNODE_CHANNEL_FD=0\nNODE_UNIQUE_ID=99\n\
         LISTEN_FDS=3\nLISTEN_PID=1\nLISTEN_PIDFDID=1\nTROOP_SLOT=7\nTROOP_WORKER=7\nTROOP_WORKER_PID=1\nTROOP_RUNTIME_DIR={at}/elsewhere\n\
         TROOP_HEALTH_COMMAND=touch {at}/taken\nNOTIFY_SOCKET={at}/socket\n"
    );
    write(home.path(), &variables);
    let mut running = Running::start(&mut troop(home.path(), &["run", "--log", "json", "web"]));
    running.event("listening");
    let worker = running.workers[0];
    let health = file(&home.path().join("health"));
    assert_eq!(health, format!("{STRANGER}\n0 1 {worker}\nnone none\n"));
    assert!(!home.path().join("taken").exists() && !home.path().join("elsewhere").exists());
    // The app is found, and replaces its worker, as ever; its files are read anew by root.
    for args in [&["ls"][..], &["reload", "web"], &["check"]] {
        let ended = Home::ended(troop(home.path(), args));
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
    }
    // Only processes of the workers' user load the library.
    let loaded = file(&home.path().join("loaded"));
    assert!(loaded.split_whitespace().all(|uid| uid == STRANGER.to_string()), "{loaded}");
    let primary = running.child.id();
    let own = environment(primary);
    assert!(
        !own.iter().any(|one| one.contains("evil")
            || one.starts_with("LISTEN_")
            || one.starts_with("NODE_CHANNEL_FD")),
        "{own:?}"
    );
    assert!(!std::fs::read_to_string(format!("/proc/{primary}/maps")).unwrap().contains("evil"));
}

#[test]
fn variables_of_the_primary_do_not_reach_workers_of_another_user() {
    if !is_root("environment::variables_of_the_primary_do_not_reach_workers_of_another_user") {
        return;
    }
    let home = open_directory();
    write(home.path(), "");
    let personal = [
        "SUDO_USER",
        "SUDO_COMMAND",
        "SSH_AUTH_SOCK",
        "SSH_CONNECTION",
        "KRB5CCNAME",
        "GNUPGHOME",
        "XDG_SESSION_ID",
    ];
    let of_one = [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
    ];
    let mut command = troop(home.path(), &["run", "--log", "json", "web"]);
    for name in personal {
        command.env(name, "of the primary");
    }
    // For another process than this one.
    command.envs([
        ("LISTEN_FDS", "3"),
        ("LISTEN_PID", "1"),
        ("LISTEN_PIDFDID", "1"),
        ("LISTEN_FDNAMES", "a:b:c"),
    ]);
    command.envs([
        ("NOTIFY_SOCKET", "/nowhere/notify"),
        ("WATCHDOG_USEC", "60000000"),
        ("WATCHDOG_PID", "1"),
        ("GIVEN", "to all"),
    ]);
    let mut running = Running::start(&mut command);
    running.event("listening");
    let seen = environment(running.workers[0]);
    for name in personal.into_iter().chain(of_one) {
        assert!(!seen.iter().any(|one| one.starts_with(&format!("{name}="))), "{name}: {seen:?}");
    }
    assert!(seen.contains(&"GIVEN=to all".to_owned()));
    assert!(file(&home.path().join("health")).ends_with("none none\n"));
}
