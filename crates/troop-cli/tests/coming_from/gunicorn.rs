//! Gunicorn: its settings about processes, and its signals.

use super::support::Home;
use super::table::Shown::Done;
use super::table::{
    Command, Setting, command, commands, is_accepted, is_written, run, setting, settings,
};

#[rustfmt::skip]
const SETTINGS: [Setting; 34] = [
    setting("--bind 127.0.0.1:8000 · -b 127.0.0.1:8001", "bind = [\"127.0.0.1:8000\", \"127.0.0.1:8001\"]", "troop opens the sockets and passes them on (`LISTEN_FDS`)"),
    setting("--bind unix:/run/app.sock", "bind = [\"/run/app.sock\"]", ""),
    setting("--workers 4 · -w 4 · WEB_CONCURRENCY=4", "workers = 4", "each is one `gunicorn -w 1`, or the server itself: uvicorn, hypercorn. Unset `WEB_CONCURRENCY`, and `workers` in gunicorn.conf.py: each worker would have as many of its own"),
    setting("--timeout 30 · -t 30", "health = { command = \"curl -fsS --max-time 5 http://127.0.0.1:8010/health\" }", "gunicorn's own timeout goes on working inside each worker"),
    setting("--graceful-timeout 30", "grace = 30", ""),
    setting("--max-requests 1000", "bind = [\"8030\"]\nrecycle = { connections = 1000 }", "connections as the kernel shows them, each second; also by age and memory. gunicorn's own setting works inside a worker, too"),
    setting("--max-requests-jitter 50", "bind = [\"8031\"]\nrecycle = { connections = 1000, jitter = 0.1 }", ""),
    setting("--preload", "", "each worker loads the program by itself, which is why a reload can change it"),
    setting("--reload", "watch = {}", ""),
    setting("--reload-extra-file conf", "watch = { paths = [\".\"] }", ""),
    setting("--chdir /srv/app", "cwd = \".\"", ""),
    setting("--daemon · -D", "", "`troop start`"),
    setting("--pid /run/app.pid · -p /run/app.pid", "pid_file = \"/run/app.pid\"", "the primary's, as there"),
    setting("--user www-data --group www-data · -u www-data · -g www-data", "user = \"www-data\"\ngroup = \"www-data\"", ""),
    setting("--initgroups", "", "a user's groups are set always"),
    setting("--umask 027 · -m 027", "umask = \"027\"", ""),
    setting("--env A=1 · -e A=1", "env = { A = \"1\" }", ""),
    setting("--name web · -n web", "", "the name of the table: `[app.web]`"),
    setting("--reuse-port", "policy = \"steered\"\nbind = [\"8020\"]", "a socket for each worker, among which the kernel chooses evenly"),
    setting("--backlog 2048", "", "as many as the system allows (`net.core.somaxconn`)"),
    setting("--worker-connections 1000 · --threads 4 · --worker-class gthread · -k gthread · --keep-alive 2", "", "remain arguments of the program"),
    setting("--certfile · --keyfile · --ciphers · --ca-certs · --cert-reqs · --ssl-version", "", "remain arguments of the program"),
    setting("--limit-request-line · --limit-request-fields · --forwarded-allow-ips · --proxy-protocol · --proxy-allow-from", "", "remain arguments of the program"),
    setting("--paste · --pythonpath · --config · -c · --worker-tmp-dir · --statsd-host", "", "remain arguments of the program"),
    setting("--access-logfile - · --error-logfile - · --log-file - · --capture-output", "output = { to = \"files\" }", "what workers print is collected; `troop logs` shows it"),
    setting("--log-syslog · --log-syslog-to", "output = { to = \"journal\" }", ""),
    setting("--log-level info · --access-logformat · --log-config · --logger-class", "", "remain arguments of the program"),
    setting("--check-config", "", "`troop check` checks troop's part, `gunicorn --check-config` its own"),
    setting("--print-config", "", "`troop show`"),
    setting("on_starting · when_ready · on_exit", "", "hooks of gunicorn's master run in each worker; `troop events` tells of starts, readiness and ends"),
    setting("pre_fork · post_fork · post_worker_init · worker_exit · child_exit", "", "the same"),
    setting("pre_request · post_request · worker_int · worker_abort", "", "remain as they are"),
    setting("nworkers_changed · on_reload · pre_exec", "", "`troop events`"),
    setting("--spew · --no-sendfile · --enable-stdio-inheritance · --disable-redirect-access-to-syslog", "", "remain arguments of the program"),
];

#[rustfmt::skip]
const COMMANDS: [Command; 9] = [
    command("-w 2 app:app --daemon", &["start --name web -w 2 -b 127.0.0.1:0 python3 app.py"], "`troop start -w 2 -b 8000 gunicorn app:app`, or uvicorn, hypercorn, waitress", Done),
    command("HUP: reload", &["reload web"], "a worker leaves when its successor serves; a release that does not start changes nothing", Done),
    command("TTIN: one worker more", &["scale web +1"], "the signal works, too", Done),
    command("TTOU: one worker less", &["scale web -1"], "the signal works, too", Done),
    command("USR1: reopen logs", &["flush web"], "logs are rotated by troop; the signal works, too", Done),
    command("USR2, WINCH, QUIT: replace gunicorn itself", &["restart web"], "after an upgrade of troop; for one of gunicorn a `troop reload` is enough. `USR2` is `troop upgrade`, which needs no restart; `WINCH` ends the workers, `QUIT` everything", Done),
    command("TERM: stop gracefully", &["stop web"], "the signal works, too", Done),
    command("INT, QUIT: stop at once", &["start web", "stop web --quick"], "`INT` is graceful here; a second one, or `QUIT`, stops at once", Done),
    command("KILL of a worker", &["start web", "signal web KILL", "wait web --timeout 30s"], "it is replaced at once", Done),
];

/// A program that takes a socket by activation, as gunicorn does.
const APP: &str = "
import os, socket
assert os.environ['LISTEN_FDS'] == '1'
listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    client.close()
";

#[test]
fn signals_of_gunicorn_have_verbs_here() {
    let home = Home::with(&[("app.py", APP)]);
    run(&home, &COMMANDS);
}

#[test]
fn the_document_about_gunicorn_is_its_tables() {
    is_accepted(&SETTINGS);
    let intro = "# Coming from gunicorn

gunicorn's master binds the port, starts workers and replaces them. With troop it is troop that does that, for each server that takes sockets by activation: `troop run -w 4 -b 8000 gunicorn app:app`, `troop run -w 4 -b 8000 uvicorn --fd 3 app:app`.
This page is written from tables that the tests run against the program. How sockets are passed is in [the tool's page](tool.md#socket-activation).

## Signals and operations

";
    let text = format!(
        "{intro}{}\n## Settings\n\n{}",
        commands("gunicorn", &COMMANDS),
        settings("gunicorn", &SETTINGS)
    );
    is_written("coming-from-gunicorn.md", &text);
}
