//! PM2: all of its commands, its options and the fields of its files.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::support::Home;
use super::table::Shown::{By, Done, Follows, Refused};
use super::table::{
    Command, Setting, command, commands, each, is_accepted, is_written, run, setting, settings,
};

/// All commands of PM2 7, as its own command line has them.
const ALL_COMMANDS: &str = "start trigger deploy startOrRestart startOrReload pid create startOrGracefulReload stop restart scale profile:mem \
    profile:cpu reload id inspect delete del sendSignal ping updatePM2 update install module:install module:update module:generate uninstall \
    module:uninstall package publish module:publish set multiset get conf config unset report link unlink monitor unmonitor open plus register login \
    logout dump save cleardump send attach resurrect unstartup startup logrotate ecosystem init reset describe desc info show env list ls l ps \
    status jlist slist sysinfos prettylist monit imonit dashboard dash flush reloadLogs logs kill pull forward backward deepUpdate serve expose \
    autoinstall examples install-otel uninstall-otel";

#[rustfmt::skip]
const COMMANDS: [Command; 72] = [
    command("start server.js --name api -i 2", &[], "`-i max` and `-i 0`: one per CPU; without `-i` 1", Done),
    command("start server.js --name jobs -i 1 -- --queue mail", &[], "the program's arguments stand behind `--`", Done),
    command("start ecosystem.config.js --only web --env production", &[], "", Done),
    command("start \"npm run dev\"", &[], "a command line in quotation marks", By("a_whole_command_is_started_as_a_shell_would")),
    command("start .", &[], "the program that package.json names", By("a_whole_command_is_started_as_a_shell_would")),
    command("list · ls · l · ps · status", &[], "`troop ls --cpu` has `CPU%`", Done),
    command("describe api · desc api · info api · show api", &[], "", Done),
    command("jlist · prettylist", &[], "one `pm_id` per app, not per worker; `troop ls --json` has more", Done),
    command("pid api · pid", &[], "the workers' process numbers", Done),
    command("env 0", &["env api"], "with secrets masked", Done),
    command("logs api --lines 5 --nostream", &[], "", Done),
    command("logs · logs api · logs api --raw", &[], "`--raw`: only what the program wrote, from `prefixed` and `json` files too", Follows),
    command("logs api --timestamp · logs api --format · logs api --highlight word", &["logs api --json"], "an answer says what to do", Refused("there is no option")),
    command("restart api --watch · restart api --name web · stop api --watch", &[], "options of an app are for `start`, or in its file, which `troop reload` reads again", Refused("there is no option")),
    command("flush api · flush", &[], "", Done),
    command("scale api 3 · scale api +1", &[], "", Done),
    command("reload api · reload all", &[], "no connection is closed; a release that does not start changes nothing, with exit code 1. In fork mode, what listens by itself (behind npm, or no Node program) ends before its successor starts, as in PM2", Done),
    command("startOrReload ecosystem.config.js · startOrGracefulReload ecosystem.config.js", &[], "", Done),
    command("restart api · restart api jobs · restart 0 · restart /^a/", &[], "the app stops in between: `troop reload` is usually better", Done),
    command("restart api --update-env", &[], "", Done),
    command("startOrRestart ecosystem.config.js", &[], "", Done),
    command("reset api · reset all", &[], "", Done),
    command("sendSignal SIGUSR2 api", &["sendSignal SIGCONT api", "signal api CONT"], "", Done),
    command("send 0 hello", &["send api '\"hello\"'"], "to all workers of the app, as JSON; `--ask` waits for replies", Done),
    command("attach 0", &["attach api"], "", By("verbs_of_pm2_do_what_they_do_there")),
    command("ping", &[], "there is no daemon that could be away", Done),
    command("dump · save", &[], "", Done),
    command("stop jobs · stop api web", &[], "stopped apps stay listed. PM2 stops by `SIGINT`, troop by `stop_signal` (`SIGTERM`): Node programs that handle `SIGINT` alone get that; others need `stop_signal = \"SIGINT\"`, which those of a PM2 file have", Done),
    command("start jobs · start 0", &[], "of an app that was stopped; one that runs is left alone (PM2 restarts it)", Done),
    command("delete jobs · del web", &[], "", Done),
    command("resurrect", &[], "", Done),
    command("serve . 0 --spa · expose . 0", &["serve . 0 --spa --name files", "expose . 0 --name others"], "without `--ftp`; `--basic-auth` takes the user's name and password from `PM2_SERVE_BASIC_AUTH_USERNAME` and `_PASSWORD`, where no list of processes shows them", Done),
    command("kill", &[], "stops all apps; each has a process of its own, and no daemon goes on", Done),
    command("startup", &[], "one systemd unit for each app of `troop.toml`, or one for all that `troop save` has saved", By("without_a_file_startup_writes_a_unit_for_what_was_saved")),
    command("unstartup", &[], "", By("unstartup_removes_what_startup_has_written_and_nothing_else")),
    command("ecosystem · init", &["ecosystem --force server.js", "init --force server.js"], "writes a first `troop.toml`; `--from ecosystem.config.js` converts one", Done),
    command("id api", &["ls"], "", Refused("`troop ls APP` shows")),
    command("monit · imonit · dashboard · dash", &["top"], "`troop top --once` prints one page", By("keys_of_a_terminal_reach_apps_after_a_yes_and_the_terminal_is_left_as_it_was")),
    command("slist", &["jlist"], "", Refused("troop jlist")),
    command("sysinfos", &[], "", Refused("vmstat")),
    command("trigger api action", &["send api '\"action\"' --ask"], "", Refused("--ask")),
    command("update · updatePM2 · deepUpdate", &["restart all"], "after the new version was installed", Refused("troop restart APP")),
    command("reloadLogs", &[], "logs are rotated by troop; `kill -USR1` of a primary reopens its files", Refused("kill -USR1")),
    command("logrotate · install pm2-logrotate · module:install x · module:update x · module:generate x", &[], "rotation is built in: `output.rotate_size`", Refused("output.rotate_size")),
    command("uninstall x · module:uninstall x · package · publish · module:publish · install-otel · uninstall-otel", &[], "there are no modules", Refused("there are no modules")),
    command("inspect api", &["run -w 0 --node-args=--inspect server.js"], "", Refused("--inspect")),
    command("profile:cpu · profile:mem", &["start server.js --node-args=--cpu-prof"], "the file is written at the end of the worker", Refused("--cpu-prof")),
    command("report", &["show api --json", "logs api --nostream"], "", Refused("troop show APP --json")),
    command("link · unlink · monitor · unmonitor · open · plus · register · login · logout", &[], "there is no hosted service: `troop ls --json`, `troop events --json`", Refused("no hosted service")),
    command("deploy production · pull api · forward api · backward api · autoinstall", &[], "bring the release by your own means; a link to it is resolved anew by `troop reload`", Refused("troop reload")),
    command("set key value · get key · multiset x · conf · config key · unset key", &[], "options are in `troop.toml`, or follow `--set`", Refused("troop.toml")),
    command("cleardump", &["save --force"], "while no app runs", Refused("troop save --force")),
    command("create", &["init"], "", Refused("troop init")),
    command("examples", &["--help", "start --help"], "", Refused("troop --help")),
    command("--version · -v", &[], "", Done),
    command("--help", &[], "", Done),
    // Options of `start`.
    command("start server.js -n api --namespace shop --cwd . --interpreter node --node-args --title=x", &[], "", By("options_of_pm2_have_their_effect")),
    command("start server.js -o out.log -e err.log -l all.log --log-type json --time --merge-logs --disable-logs", &[], "the files have what the program prints and nothing else; `--log-date-format`: times are always those of RFC 3339", By("options_of_pm2_have_their_effect")),
    command("start server.js -k 1600 --listen-timeout 3000 --wait-ready --shutdown-with-message", &[], "milliseconds, as there", By("options_are_read_as_there")),
    command("start server.js --max-memory-restart 300M --max-restarts 3 --min-uptime 1000 --restart-delay 100", &[], "", By("options_are_read_as_there")),
    command("start server.js --exp-backoff-restart-delay 100 --stop-exit-codes 0 --no-autorestart", &[], "", By("options_are_read_as_there")),
    command("start server.js --cron-restart \"0 4 * * *\"", &[], "`--cron` too; `-c` is troop's `--config`", By("options_are_read_as_there")),
    command("start server.js --watch src --ignore-watch node_modules --watch-delay 500", &[], "", By("options_are_read_as_there")),
    command("start server.js --uid www-data --gid www-data", &[], "", By("options_are_read_as_there")),
    command("start server.js -f --filter-env AWS --source-map-support --no-treekill --attach -a --env production --only api", &[], "", By("options_are_read_as_there")),
    command("start server.js --no-vizion --no-pmx --parallel 2 -x --no-color --disable-source-map-support --trace --v8", &[], "change nothing here", By("options_are_read_as_there")),
    command("start server.js --no-daemon", &["run server.js"], "", By("options_are_read_as_there")),
    command("start server.js --no-autostart", &[], "`autostart = false` in a file", Refused("autostart = false")),
    command("start server.js -s · start server.js --ext js · start server.js -m · list --sort name:asc", &[], "an answer says what to do", Refused("there is no option")),
    command("start server.js -w", &["init --force server.js"], "`-w` is the number of workers", Refused("--workers")),
    command("start server.js -u me · start server.js --hp /home/me", &["startup"], "these are PM2's options of `startup`, which writes a unit for the user that calls it", Refused("troop startup")),
    command("start server.js --container · start server.js --dist", &[], "a container's command is `troop run`", Refused("`troop run`")),
];

#[rustfmt::skip]
const FIELDS: [Setting; 67] = [
    setting("script: \"./server.js\"", "program = \"./server.js\"", "also `exec`, `cmd`, `command`; a text with spaces is a command line"),
    setting("name: \"api\"", "", "the name of the table: `[app.api]`"),
    setting("namespace: \"shop\"", "namespace = \"shop\"", ""),
    setting("args: \"--port 8000\"", "args = [\"--port\", \"8000\"]", ""),
    setting("args: [\"--port\", \"8000\"]", "args = [\"--port\", \"8000\"]", ""),
    setting("interpreter: \"python3\"", "program = \"python3\"\nargs = [\"./server.js\"]\nstop_signal = \"SIGINT\"", "also `exec_interpreter`; `\"none\"` executes the script itself, as troop does with programs other than scripts"),
    setting("node_args: \"--max-old-space-size=512\"", "node_args = [\"--max-old-space-size=512\"]", "also `interpreter_args`"),
    setting("instances: 4", "workers = 4", ""),
    setting("instances: \"max\"", "workers = \"auto\"", "also 0; -1 is one less than there are CPUs"),
    setting("exec_mode: \"fork\"", "alone = \"auto\"", "the default there without `instances`; workers share what they listen on, unless the program clusters itself"),
    setting("exec_mode: \"cluster\"", "", ""),
    setting("env: { NODE_ENV: \"production\" }", "env = { NODE_ENV = \"production\" }", ""),
    setting("env_production: { A: 1 }", "", "`troop start ecosystem.config.js --env production`"),
    setting("env_file: \".env\"", "env_file = [\".env\"]", ""),
    setting("filter_env: [\"AWS\"]", "env_remove = [\"*AWS*\"]", ""),
    setting("port: 8000", "env = { PORT = \"8000\" }", ""),
    setting("instance_var: \"NUMBER\"", "slot_variable = \"NUMBER\"", "`NODE_APP_INSTANCE` is set anyway"),
    setting("increment_var: \"PORT\"", "increment_variable = \"PORT\"", ""),
    setting("cwd: \".\"", "", "`cwd`"),
    setting("kill_timeout: 1600", "grace = 1.6", "default: 30 s, there 1.6 s"),
    setting("script: \"./worker.py\"", "stop_signal = \"SIGINT\"", "PM2's signal for every program that is not Node's. Node programs get the one of `SIGTERM` and `SIGINT` that they handle. `SIGTERM` remains for shells, command lines, npm and others that start the program, as they do not pass `SIGINT` on, and for gunicorn, which would cut off its requests"),
    setting("kill_signal: \"SIGQUIT\"", "stop_signal = \"SIGQUIT\"", "also `stop_signal`: PM2 has none of them"),
    setting("env: { PM2_KILL_SIGNAL: \"SIGTERM\" }", "stop_signal = \"SIGTERM\"", "the variables of PM2's daemon have their effect in the environment of `troop start` and in `env`: `PM2_KILL_TIMEOUT` and `PM2_KILL_USE_MESSAGE`, too"),
    setting("shutdown_with_message: true", "shutdown_with_message = true", ""),
    setting("treekill: false", "kill_mode = \"process\"", "default: `\"tree\"`"),
    setting("wait_ready: true", "ready = \"message\"\nassume_ready = 3", "ready in any case after `listen_timeout`, with a warning"),
    setting("listen_timeout: 60000", "ready_timeout = 60", "with `wait_ready`: `assume_ready`"),
    setting("max_memory_restart: \"300M\"", "recycle = { memory = \"300M\" }", "without losing a connection"),
    setting("cron_restart: \"0 4 * * *\"", "recycle = { cron = \"0 4 * * *\" }", "also `cron`; with `autorestart: false` a job: `cron`"),
    setting("autorestart: false", "restart = { when = \"never\" }", ""),
    setting("autostart: false", "autostart = false", ""),
    setting("min_uptime: 2000", "restart = { min_uptime = 2 }", ""),
    setting("max_restarts: 5", "restart = { max = 5 }", "for an app that has not been ready yet; one that has is never given up"),
    setting("max_restarts: Infinity", "restart = { max = 4294967295 }", "a start without a ready worker has failed after `restart.window` all the same. Other numbers without an end, and `NaN`, have no effect, with a warning"),
    setting("restart_delay: 4000", "restart = { delay = 4, max_delay = 4 }", ""),
    setting("exp_backoff_restart_delay: 100", "restart = { delay = 0.1, max_delay = 15 }", ""),
    setting("stop_exit_codes: [0]", "restart = { final_codes = [0] }", ""),
    setting("out_file: \"out.log\"", "", "`output = { file = \"out.log\" }`; also `out`, `output`, `out_log`"),
    setting("error_file: \"err.log\"", "", "`output = { error_file = \"err.log\" }`; also `error`, `err`, `err_file`, `err_log`"),
    setting("log_file: \"all.log\"", "", "`output = { all_file = \"all.log\" }`; also `log`"),
    setting("log_type: \"json\"", "output = { format = \"json\" }", ""),
    setting("time: true", "output = { format = \"prefixed\" }", ""),
    setting("log_date_format: \"YYYY\"", "output = { format = \"prefixed\" }", "times are always those of RFC 3339, with a warning"),
    setting("disable_logs: true", "silent = true", ""),
    setting("merge_logs: true", "", "the workers of an app share its files; also `combine_logs`"),
    setting("out_file: \"out.log\", instances: 2", "output = { per_worker = true }", "as there, `out-0.log` and `out-1.log`, unless `merge_logs: true`; here by the slot, so that each app begins with 0"),
    setting("pid_file: \"app.pid\"", "worker_pid_file = \"./app.pid\"", "also `pid`: `app-0.pid`, by the slot, too; `pid_file` has the primary's number"),
    setting("script: \"serve\", env: { PM2_SERVE_PATH: \"dist\" }", "args = [\"serve-files\", \"dist\", \"8080\"]", "`troop serve` does it: `PM2_SERVE_PATH`, `_PORT`, `_HOST`, `_SPA`, `_HOMEPAGE` and `_BASIC_AUTH` as there, without `_FTP`; the list `static`, too"),
    setting("env: { A: null, B: [1] }", "env = { A = \"null\", B = \"[1]\" }", "other values than text are passed on as JSON"),
    setting("uid: \"root\"", "user = \"root\"", "also `user`"),
    setting("gid: \"root\"", "group = \"root\"", "also `group`"),
    setting("watch: true", "watch = {}", ""),
    setting("watch: [\".\"]", "watch = { paths = [\".\"] }", ""),
    setting("watch: true, ignore_watch: [\"node_modules\"]", "watch = { ignore = [\"node_modules\"] }", ""),
    setting("watch: true, watch_delay: 500", "watch = { delay = 0.5 }", ""),
    setting("source_map_support: true", "node_args = [\"--enable-source-maps\"]", ""),
    setting("name_prefix: \"x\"", "", "part of the name, as `append_env_to_name`"),
    setting("deep_monitoring: true", "", "as `pmx`, `trace`, `v8`, `automation`, `event_loop_inspector`: nothing is injected into programs"),
    setting("vizion: false", "", "troop does not read the program's repository"),
    setting("force: true", "", ""),
    setting("windowsHide: true", "", ""),
    setting("execute_command: true", "", "programs other than scripts are executed directly anyway"),
    setting("post_update: [\"npm install\"]", "", "belongs to `pm2 pull`"),
    setting("install_url: \"x\"", "", ""),
    setting("kill_retry_time: 100", "", ""),
    setting("watch_options: {}", "", "the kernel tells of changes; a warning if there is something in it"),
    setting("io: {}", "", ""),
];

const SERVER: &str = "
require('http').createServer(() => {}).listen(0, '127.0.0.1');
setInterval(() => console.log('a line'), 50);
process.on('message', () => {});
";

const ECOSYSTEM: &str = "module.exports = { apps: [{ name: 'web', script: './server.js', env_production: { A: 1 } }] };\n";

#[test]
fn commands_of_pm2_do_here_what_the_table_says() {
    let home = Home::with(&[("server.js", SERVER), ("ecosystem.config.js", ECOSYSTEM)]);
    let named: BTreeSet<&str> = COMMANDS
        .iter()
        .flat_map(|row| each(row.theirs))
        .filter_map(|words| words.split(' ').next())
        .collect();
    for verb in ALL_COMMANDS.split_whitespace() {
        assert!(named.contains(verb), "{verb} is not in the table");
    }
    run(&home, &COMMANDS);
}

#[test]
fn options_are_read_as_there() {
    let home = Home::with(&[("server.js", SERVER)]);
    for Command { theirs, shown, .. } in &COMMANDS {
        if theirs.starts_with("start server.js") && matches!(shown, By(_)) {
            let words = shlex::split(theirs).unwrap();
            let words: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
            // An option that there is not is an error before the help is shown.
            home.fine(&words);
        }
    }
}

#[test]
fn fields_of_pm2_become_what_the_table_says() {
    let mut file = String::from("{ apps: [{ name: 'plain', script: './server.js' }");
    for (at, Setting { theirs, .. }) in FIELDS.iter().enumerate() {
        let script = if theirs.starts_with("script:") { "" } else { "script: './server.js', " };
        let name = if theirs.starts_with("name:") { "" } else { &format!("name: 'a{at}', ") };
        let _ = write!(file, ", {{ {name}{script}{theirs} }}");
    }
    file.push_str("] }");
    let home = Home::with(&[("server.js", ""), (".env", "B=2\n"), ("ecosystem.json", &file)]);
    let written: toml::Table =
        home.fine(&["init", "--from", "ecosystem.json", "-o", "-"]).parse().unwrap();
    let apps = written["app"].as_table().unwrap();
    for (at, Setting { theirs, ours, remark }) in FIELDS.iter().enumerate() {
        let Some(app) = apps.get(&format!("a{at}")) else {
            assert!(theirs.contains("name"), "{theirs}: {written}");
            continue;
        };
        let expected: toml::Table = ours.parse().unwrap();
        assert!(has(app, &toml::Value::Table(expected)), "{theirs}: {app}");
        if ours.is_empty()
            && !remark.contains('=')
            && !theirs.starts_with("cwd")
            && !theirs.starts_with("exec_mode")
        {
            assert_eq!(app, &apps["plain"], "{theirs}");
        }
    }
}

/// Whether a value has all of another one; numbers and texts that mean the same are equal.
fn has(value: &toml::Value, part: &toml::Value) -> bool {
    match (value, part) {
        (toml::Value::Table(value), toml::Value::Table(part)) => {
            part.iter().all(|(key, part)| value.get(key).is_some_and(|value| has(value, part)))
        }
        (toml::Value::Array(value), toml::Value::Array(part)) => {
            value.len() == part.len()
                && value.iter().zip(part).all(|(value, part)| has(value, part))
        }
        (value, part) => {
            seconds(value).is_some_and(|value| Some(value) == seconds(part)) || value == part
        }
    }
}

fn seconds(value: &toml::Value) -> Option<f64> {
    match value {
        toml::Value::Integer(number) => Some(*number as f64),
        toml::Value::Float(number) => Some(*number),
        toml::Value::String(text) => text
            .parse()
            .ok()
            .or_else(|| humantime::parse_duration(text).ok().map(|time| time.as_secs_f64())),
        _ => None,
    }
}

#[test]
fn the_document_about_pm2_is_its_tables() {
    is_accepted(&FIELDS);
    let intro = "# Coming from PM2

What PM2 has, and what it is here. `troop start ecosystem.config.js` takes PM2's files as they are; `troop init --from ecosystem.config.js` converts one to `troop.toml`. This page is written from tables that the
tests run against the program; [the tool's page](tool.md#coming-from-pm2) says how paths, log files and programs that cluster themselves are treated.

There is no daemon: each app has a primary process of its own, which `troop ls` finds. So there is nothing to update or to kill but the apps, and one app cannot take the others down.

## Commands and options

";
    let text = format!(
        "{intro}{}\n## Fields of an app\n\n{}",
        commands("pm2", &COMMANDS),
        settings("PM2's file", &FIELDS)
    );
    is_written("coming-from-pm2.md", &text);
}
