//! supervisord: the fields of its programs, and supervisorctl.

use super::support::Home;
use super::table::Shown::{Done, Follows};
use super::table::{
    Command, Setting, command, commands, each, is_accepted, is_written, run, setting, settings,
};

/// What must be written here where it is left out there.
#[rustfmt::skip]
const LEFT_OUT: [Setting; 6] = [
    setting("numprocs", "workers = 1", "without it: one per CPU, also of a scheduler that must not run twice"),
    setting("autorestart", "restart = { when = \"on-failure\" }", "a program that ends with code 0 is run again here, there only one that fails; `\"never\"` for what runs once, such as a migration"),
    setting("startretries", "restart = { max = 4, delay = \"1s\" }", "3 more starts, after 1, 2 and 3 s there and 1, 2 and 4 s here; `max` counts the ends of all workers, so it is 4 for each of them"),
    setting("stopwaitsecs", "grace = 10", "30 s here"),
    setting("redirect_stderr", "output = { file = \"web.log\", error_file = \"web.err\" }", "two files there, one here"),
    setting("stdout_logfile_maxbytes · stdout_logfile_backups", "output = { rotate_size = \"50M\", keep = 10 }", "10 MB and 5 here"),
];

#[rustfmt::skip]
const SETTINGS: [Setting; 37] = [
    setting("command=/srv/app/server --port 8000", "program = \"./server.js\"\nargs = [\"--port\", \"8000\"]", ""),
    setting("process_name=%(program_name)s_%(process_num)02d", "", "`web:1`, `web:2` …; a program finds its number in `TROOP_SLOT`"),
    setting("numprocs=4", "workers = 4", ""),
    setting("numprocs_start=1", "slot_variable = \"NUMBER\"", "`TROOP_SLOT` counts from 0"),
    setting("priority=10", "after = [\"a0\"]", "apps start side by side unless one is `after` another; it stops before that one"),
    setting("autostart=false", "autostart = false", ""),
    setting("autorestart=true", "restart = { when = \"always\" }", "the default; `unexpected` is `\"on-failure\"`, with `final_codes` as `exitcodes`"),
    setting("autorestart=false", "restart = { when = \"never\" }", ""),
    setting("startsecs=1", "restart = { min_uptime = 1 }", ""),
    setting("startretries=3", "restart = { max = 4, delay = \"1s\" }", "for an app that has not been ready yet; one that has is never given up (`FATAL`), unless `when_failed = \"end\"`"),
    setting("exitcodes=0,2", "restart = { when = \"on-failure\", final_codes = [2] }", ""),
    setting("stopsignal=QUIT", "stop_signal = \"SIGQUIT\"", ""),
    setting("stopwaitsecs=10", "grace = 10", "default: 30 s"),
    setting("stopasgroup=true", "stop_group = true", "the default: only `SIGINT`, and only to the group of a shell"),
    setting("killasgroup=true", "kill_mode = \"tree\"", "the default: all that a worker has started ends with it"),
    setting("user=www-data", "user = \"www-data\"", ""),
    setting("redirect_stderr=true", "output = { file = \"both.log\" }", "one file for both unless `error_file` is set"),
    setting("stdout_logfile=/var/log/web.log", "output = { to = \"files\", file = \"web.log\" }", ""),
    setting("stdout_logfile=/dev/stdout · stdout_logfile_maxbytes=0", "output = { to = \"terminal\" }", "the default of `troop run`"),
    setting("stdout_logfile=NONE", "silent = true", ""),
    setting("stdout_logfile_maxbytes=50MB", "output = { rotate_size = \"50M\" }", ""),
    setting("stdout_logfile_backups=10", "output = { keep = 10 }", ""),
    setting("stdout_syslog=true", "output = { to = \"journal\" }", ""),
    setting("stderr_logfile=/var/log/web.err", "output = { error_file = \"web.err\" }", ""),
    setting("stdout_capture_maxbytes · stdout_events_enabled · stderr_capture_maxbytes · stderr_events_enabled", "", "`troop events --json` tells of the app, `troop logs -f` has what it prints"),
    setting("environment=A=\"1\",B=\"2\"", "env = { A = \"1\", B = \"2\" }", ""),
    setting("environment=HOME=\"%(ENV_HOME)s\"", "env = { A = \"${HOME}\" }", "`${NAME:-default}`, too; a `%` is itself"),
    setting("directory=/srv/app", "cwd = \".\"", ""),
    setting("umask=022", "umask = \"022\"", ""),
    setting("serverurl=AUTO", "", "each app has a control socket of its own"),
    setting("[group:shop] programs=web,jobs", "namespace = \"shop\"", "verbs take it for all apps that have it"),
    setting("[fcgi-program:x] socket=tcp://127.0.0.1:9000", "bind = [\"127.0.0.1:9000\"]", "passed as descriptor 3, as systemd does, or where `{fd}` stands among the arguments; a program that expects it as 0: `sh -c \"exec ./server <&3\"`"),
    setting("[eventlistener:x]", "", "`troop events --json web` tells all; `troop admin --alert` runs a command when something is wrong"),
    setting("[supervisord] nodaemon=true", "", "`troop run`"),
    setting("[supervisord] minfds=1024", "limits = { files = 1024 }", "of each app"),
    setting("[unix_http_server] · [inet_http_server] · [rpcinterface:x]", "", "each app has a control socket that only its user may open"),
    setting("[include] files=conf.d/*.ini", "", "one `troop.toml` for apps that belong together, `-c FILE` for others"),
];

#[rustfmt::skip]
const COMMANDS: [Command; 17] = [
    command("start all", &["start"], "all apps of `troop.toml`", Done),
    command("stop web", &["stop web"], "it stays listed", Done),
    command("start web", &["start web"], "", Done),
    command("status", &["ls"], "`troop ls --quiet` says it by its exit code", Done),
    command("status web", &["show web", "ls web --quiet"], "the second says it by its exit code", Done),
    command("pid web", &["pid web"], "", Done),
    command("restart web", &["restart web"], "`troop reload` replaces workers without dropping connections", Done),
    command("signal CONT web", &["signal web CONT"], "to the workers", Done),
    command("tail web", &["logs web --nostream"], "", Done),
    command("tail -f web", &["logs web -f"], "", Follows),
    command("tail web stderr", &["logs web --nostream --err"], "", Done),
    command("clear web", &["flush web"], "", Done),
    command("reread", &["check"], "says what a file means and what is wrong with it", Done),
    command("update", &["start"], "starts what is new in `troop.toml`; `troop restart web` for what has changed, `troop delete web` for what is not in it any more", Done),
    command("add web", &["start web"], "", Done),
    command("remove web", &["delete web"], "", Done),
    command("shutdown", &["stop all"], "", Done),
];

const SERVER: &str = "
require('http').createServer(() => {}).listen(0, '127.0.0.1');
setInterval(() => console.log('a line'), 50);
";

const FILE: &str = "
[app.web]
program = 'server.js'
workers = 1
[app.jobs]
program = 'server.js'
workers = 1
";

#[test]
fn commands_of_supervisorctl_have_verbs_here() {
    let home = Home::with(&[("server.js", SERVER), ("troop.toml", FILE)]);
    run(&home, &COMMANDS);
}

#[test]
fn fields_of_supervisords_in_troop_toml_are_answered_with_what_they_are_here() {
    let home = Home::with(&[]);
    let fields = SETTINGS.iter().filter(|row| !row.theirs.starts_with('['));
    let fields = fields.flat_map(|row| each(row.theirs).map(|theirs| (theirs, row.ours)));
    let mut answered = 0;
    for (theirs, ours) in fields {
        let field = theirs.split('=').next().unwrap();
        let ours = ours.split(' ').next().unwrap();
        if field == ours {
            continue;
        }
        let text = format!("[app.web]\nprogram = 'sh'\n{field} = 'x'\n");
        std::fs::write(home.path().join("troop.toml"), text).unwrap();
        let (code, out, err) = home.troop(&["check"]);
        assert!(code == 2 && err.contains("supervisord's"), "{field}: {out}{err}");
        assert!(err.contains(&format!("`{ours}")), "{field} is {ours}: {err}");
        answered += 1;
    }
    assert!(answered > 20, "{answered}");
}

#[test]
fn the_document_about_supervisord_is_its_tables() {
    is_accepted(&SETTINGS);
    is_accepted(&LEFT_OUT);
    let intro = "# Coming from supervisord

What supervisord's programs and `supervisorctl` are here. `troop start` starts the apps of a `troop.toml`, each with a primary of its own: there is no daemon. This page is written from tables that the tests run against the program.

What runs where `supervisord -n` did, as in a container: `troop run` runs all apps of `troop.toml` in the foreground, in the order of `after`. One that fails ends the others, unless it is told to `--keep-going`.

An app that is `after` another one starts when that is ready, also at boot (`troop startup`, `troop resurrect`), and stops before it. A program that runs once (`restart = { when = \"never\" }`) is ready when it has ended with success, or listens; it may take 10 minutes, or `ready_timeout`.

`troop reload` starts new workers before the old ones end. What must never run twice, such as a scheduler, has `alone = true`, or is restarted.

## Defaults that differ

";
    let text = format!(
        "{intro}{}\n## supervisorctl\n\n{}\n## Fields of a program\n\n{}",
        settings("left out in supervisord's file", &LEFT_OUT),
        commands("supervisorctl", &COMMANDS),
        settings("supervisord's file", &SETTINGS)
    );
    is_written("coming-from-supervisord.md", &text);
}
