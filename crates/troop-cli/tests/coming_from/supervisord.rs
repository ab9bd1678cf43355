//! supervisord: the fields of its programs, and supervisorctl.

use super::support::Home;
use super::table::Shown::{Done, Follows};
use super::table::{
    Command, Setting, command, commands, each, is_accepted, is_written, run, setting, settings,
};

#[rustfmt::skip]
const SETTINGS: [Setting; 33] = [
    setting("command=/srv/app/server --port 8000", "program = \"./server.js\"\nargs = [\"--port\", \"8000\"]", ""),
    setting("process_name=%(program_name)s_%(process_num)02d", "", "`web:1`, `web:2` …"),
    setting("numprocs=4", "workers = 4", ""),
    setting("numprocs_start=1", "slot_variable = \"NUMBER\"", "`TROOP_SLOT` counts from 0"),
    setting("priority=10", "after = [\"a0\"]", "apps start side by side unless one is `after` another"),
    setting("autostart=false", "autostart = false", ""),
    setting("autorestart=true", "restart = { when = \"always\" }", "the default; `unexpected` is `\"on-failure\"`, with `final_codes` as `exitcodes`"),
    setting("autorestart=false", "restart = { when = \"never\" }", ""),
    setting("startsecs=1", "restart = { min_uptime = 1 }", ""),
    setting("startretries=3", "restart = { max = 3 }", "for an app that has not been ready yet; one that has is never given up (`FATAL`), unless `when_failed = \"end\"`"),
    setting("exitcodes=0,2", "restart = { when = \"on-failure\", final_codes = [2] }", ""),
    setting("stopsignal=QUIT", "stop_signal = \"SIGQUIT\"", ""),
    setting("stopwaitsecs=10", "grace = 10", "default: 30 s"),
    setting("stopasgroup=true", "stop_group = true", "the default: only `SIGINT`, and only to the group of a shell"),
    setting("killasgroup=true", "kill_mode = \"tree\"", "the default: all that a worker has started ends with it"),
    setting("user=www-data", "user = \"www-data\"", ""),
    setting("redirect_stderr=true", "output = { file = \"both.log\" }", "one file for both unless `error_file` is set"),
    setting("stdout_logfile=/var/log/web.log", "output = { to = \"files\", file = \"web.log\" }", ""),
    setting("stdout_logfile=NONE", "silent = true", ""),
    setting("stdout_logfile_maxbytes=50MB", "output = { rotate_size = \"50M\" }", ""),
    setting("stdout_logfile_backups=10", "output = { keep = 10 }", ""),
    setting("stdout_syslog=true", "output = { to = \"journal\" }", ""),
    setting("stderr_logfile=/var/log/web.err", "output = { error_file = \"web.err\" }", ""),
    setting("stdout_capture_maxbytes · stdout_events_enabled · stderr_capture_maxbytes · stderr_events_enabled", "", "`troop events --json` tells of the app, `troop logs -f` has what it prints"),
    setting("environment=A=\"1\",B=\"2\"", "env = { A = \"1\", B = \"2\" }", ""),
    setting("directory=/srv/app", "cwd = \".\"", ""),
    setting("umask=022", "umask = \"022\"", ""),
    setting("serverurl=AUTO", "", "each app has a control socket of its own"),
    setting("[group:shop] programs=web,jobs", "namespace = \"shop\"", "verbs take it for all apps that have it"),
    setting("[fcgi-program:x] socket=tcp://127.0.0.1:9000", "bind = [\"127.0.0.1:9000\"]", "passed as systemd does; for FastCGI programs see `{fd}`"),
    setting("[eventlistener:x]", "", "`troop events --json`"),
    setting("[unix_http_server] · [inet_http_server] · [rpcinterface:x]", "", "each app has a control socket that only its user may open"),
    setting("[include] files=conf.d/*.ini", "", "one `troop.toml` for apps that belong together, `-c FILE` for others"),
];

#[rustfmt::skip]
const COMMANDS: [Command; 17] = [
    command("start all", &["start"], "all apps of `troop.toml`", Done),
    command("stop web", &["stop web"], "it stays listed", Done),
    command("start web", &["start web"], "", Done),
    command("status", &["ls"], "", Done),
    command("status web", &["show web", "ls web --quiet"], "the second says it by its exit code", Done),
    command("pid web", &["pid web"], "", Done),
    command("restart web", &["restart web"], "`troop reload` replaces workers without dropping connections", Done),
    command("signal HUP web", &["signal web CONT"], "to the workers", Done),
    command("tail web", &["logs web --nostream"], "", Done),
    command("tail -f web", &["logs web -f"], "", Follows),
    command("tail web stderr", &["logs web --nostream --err"], "", Done),
    command("clear web", &["flush web"], "", Done),
    command("reread", &["check"], "says what a file means and what is wrong with it", Done),
    command("update", &["reload all"], "with what `troop.toml` says by then", Done),
    command("add web", &["check"], "`troop start` reads the file anew", Done),
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
    let intro = "# Coming from supervisord

What supervisord's programs and `supervisorctl` are here. `troop start` starts the apps of a `troop.toml`, each with a primary of its own: there is no daemon. This page is written from tables that the tests run against the program.

## supervisorctl

";
    let text = format!(
        "{intro}{}\n## Fields of a program\n\n{}",
        commands("supervisorctl", &COMMANDS),
        settings("supervisord's file", &SETTINGS)
    );
    is_written("coming-from-supervisord.md", &text);
}
