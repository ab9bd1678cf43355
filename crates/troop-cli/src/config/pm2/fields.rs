//! The fields of an app in PM2's files, and what they mean here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::logs::{LogPath, Logs};
use super::place::{self, Bases};
use super::plain::{
    exit_codes, filtered, flag, instances, is_nothing, list, not_finite, number, plain, time,
    variables, words,
};
use super::{Converted, deployed_variables, serve, stops};
use crate::config::app::App;
use crate::config::tables::{Alone, Auto, Form, KillMode, Ready, Watch, When};
use crate::config::values::{self, Time, Workers};
use crate::{names, program, suggest};

/// The names of the field with the script.
pub(super) const SCRIPT: [&str; 4] = ["script", "exec", "cmd", "command"];

/// Other names of fields.
const ALIASES: [(&str, &str); 18] = [
    ("exec", "script"),
    ("cmd", "script"),
    ("command", "script"),
    ("interpreter", "exec_interpreter"),
    ("interpreter_args", "node_args"),
    ("out", "out_file"),
    ("output", "out_file"),
    ("out_log", "out_file"),
    ("error", "error_file"),
    ("err", "error_file"),
    ("err_file", "error_file"),
    ("err_log", "error_file"),
    ("log", "log_file"),
    ("pid", "pid_file"),
    ("cron", "cron_restart"),
    ("combine_logs", "merge_logs"),
    ("user", "uid"),
    ("group", "gid"),
];

/// Fields that have no effect here and cause no warning: of PM2's monitoring, its own bookkeeping and
/// Windows.
const SILENT: [&str; 20] = [
    "pmx",
    "vizion",
    "automation",
    "trace",
    "disable_trace",
    "v8",
    "event_loop_inspector",
    "deep_monitoring",
    "io",
    "windows_hide",
    "force",
    "write",
    "install_url",
    "username",
    "kill_retry_time",
    "execute_command",
    "disable_source_map_support",
    "description",
    "version",
    "post_update",
];

/// Fields with an effect, for suggestions.
const KNOWN: [&str; 47] = [
    "script",
    "name",
    "namespace",
    "cwd",
    "args",
    "interpreter",
    "exec_interpreter",
    "node_args",
    "interpreter_args",
    "instances",
    "exec_mode",
    "env",
    "env_file",
    "max_memory_restart",
    "min_uptime",
    "max_restarts",
    "restart_delay",
    "exp_backoff_restart_delay",
    "autorestart",
    "autostart",
    "cron_restart",
    "stop_exit_codes",
    "shutdown_with_message",
    "kill_timeout",
    "listen_timeout",
    "wait_ready",
    "out_file",
    "error_file",
    "log_file",
    "log_type",
    "log_date_format",
    "disable_logs",
    "time",
    "uid",
    "gid",
    "user",
    "instance_var",
    "increment_var",
    "port",
    "watch",
    "ignore_watch",
    "watch_delay",
    "treekill",
    "filter_env",
    "source_map_support",
    "pid_file",
    "merge_logs",
];

/// Fields that are numbers.
const NUMBERS: [&str; 10] = [
    "instances",
    "max_memory_restart",
    "min_uptime",
    "max_restarts",
    "restart_delay",
    "exp_backoff_restart_delay",
    "kill_timeout",
    "listen_timeout",
    "watch_delay",
    "port",
];
/// Those of them that are limits, of which there may be none.
const LIMITS: [&str; 2] = ["max_memory_restart", "max_restarts"];
/// The number of restarts that stands for no limit, which every format can hold.
const NO_LIMIT: usize = u32::MAX as usize;

/// PM2's modes, by all their names.
const MODES: [&str; 4] = ["fork", "cluster", "fork_mode", "cluster_mode"];

/// PM2's `listen_timeout` by default.
pub(crate) const LISTEN_TIMEOUT: Time = Time(Duration::from_secs(3));
/// PM2's longest delay under `exp_backoff_restart_delay`.
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// The fields of an app.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    fields: Map<String, Value>,
    /// The chosen environment.
    chosen: Option<&'a str>,
    /// Variables of the deployment of that name.
    deployed: Option<&'a Map<String, Value>>,
    warnings: Vec<String>,
}

/// What several fields decide together.
#[derive(Debug, Default)]
struct Parts {
    args: Vec<String>,
    interpreter: Option<String>,
    environments: BTreeMap<String, BTreeMap<String, String>>,
    logs: Logs,
    restart_delay: Option<Time>,
    backoff: Option<Time>,
    listen_timeout: Option<Time>,
    waits_ready: bool,
    has_source_maps: bool,
    ignored: Vec<String>,
    watch_delay: Option<Time>,
    cron: Option<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(
        fields: Map<String, Value>,
        chosen: Option<&'a str>,
        rest: &'a Map<String, Value>,
    ) -> Fields<'a> {
        let deployed = chosen.and_then(|chosen| deployed_variables(rest, chosen));
        let (mut named, mut warnings) = (Map::new(), Vec::new());
        // A field under its own name overrides its other names.
        let (own, others): (Vec<_>, Vec<_>) = fields
            .into_iter()
            .filter(|(_, value)| !is_nothing(value))
            .partition(|(key, _)| canonical(key) == *key);
        for (key, value) in own.into_iter().chain(others) {
            let name = canonical(&key);
            match not_finite(&value).filter(|_| NUMBERS.contains(&&*name)) {
                // There is a limit only where there is one.
                Some("Infinity") if LIMITS.contains(&&*name) => {}
                // As in PM2, where it becomes null on its way to the daemon.
                Some(number) => {
                    warnings.push(format!("`{key}` has no effect: it is {number}"));
                    continue;
                }
                None => {}
            }
            match named.get(&name) {
                Some(other) if *other != value => {
                    warnings.push(format!(
                        "`{key}` has no effect beside `{name}`, or another name of it"
                    ));
                }
                Some(_) => {}
                None => drop(named.insert(name, value)),
            }
        }
        Fields { fields: named, chosen, deployed, warnings }
    }

    fn has_several(&self) -> bool {
        self.fields.get("instances").is_some_and(|n| n != 1 && n != "1")
    }

    /// Whether PM2 runs the app in fork mode, which it does unless a number of instances or the mode
    /// is given.
    fn is_forked(&self) -> bool {
        match self.text("exec_mode") {
            Some(mode) => mode.starts_with("fork"),
            None => !self.fields.contains_key("instances"),
        }
    }

    /// Whether each instance writes to log files of its own, as `out-0.log`.
    fn has_logs_apart(&self) -> bool {
        match self.fields.get("merge_logs") {
            Some(are_merged) => flag(are_merged) != Ok(true),
            // PM2 has no number for all CPUs when it decides this.
            None => {
                let number = self.text("instances").and_then(|n| n.parse::<i64>().ok());
                number.is_some_and(|number| number != 0)
                    || self.text("exec_mode").is_some_and(|mode| mode.starts_with("cluster"))
            }
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        self.fields.get(key).map(plain)
    }

    /// Returns the error of an app without its script, with the field that was probably meant as one.
    fn without_script(&self) -> String {
        let name = self.text("name").map_or_else(|| "an app".into(), |name| format!("app {name}"));
        let mut keys = self.fields.keys();
        let meant = keys.find(|key| suggest::nearest(key, SCRIPT).is_some());
        let meant = meant.map(|key| format!("; is it `{key}`?")).unwrap_or_default();
        format!("{name} has no `script`{meant}")
    }

    /// Converts the fields to an app.
    pub(super) fn convert(mut self, bases: &Bases) -> Result<Converted, String> {
        let mut warnings = std::mem::take(&mut self.warnings);
        let script = self.fields.get("script").and_then(Value::as_str);
        let script = script.ok_or_else(|| self.without_script())?.to_owned();
        let name = self.name(&script, &mut warnings);
        let mut app = App::new(script.clone());
        // PM2's default is one instance.
        app.workers = Some(Workers::Number(1));
        app.alone = self.is_forked().then_some(Alone::IfPrimary(Auto::Auto));
        let cwd = self.text("cwd");
        let place = match script == serve::SCRIPT {
            true => bases.find("", cwd.as_deref()),
            false => bases.find(&script, cwd.as_deref()),
        };
        app.cwd = place.cwd;
        warnings.extend(place.warning);
        if let Some(deployed) = self.deployed {
            app.env.extend(variables(deployed));
        }
        let mut parts = Parts::default();
        for (key, value) in &self.fields {
            self.take(key, value, &mut app, &mut parts, &mut warnings)
                .map_err(|e| format!("{name}: {key}: {e}"))?;
        }
        if let Some(port) = self.text("port") {
            app.env.insert("PORT".into(), port);
        }
        if let Some(chosen) = self.chosen {
            // At least one app of the file has the environment.
            app.env.extend(parts.environments.remove(chosen).unwrap_or_default());
        } else if !parts.environments.is_empty() {
            let names: Vec<_> =
                parts.environments.keys().map(|name| format!("`--env {name}`")).collect();
            warnings.push(format!("more variables can be chosen with {}", names.join(", ")));
        }
        restarts(&mut app, &parts);
        match parts.cron.take() {
            // What ends by itself runs again at these times, as from the start on.
            Some(pattern) if app.restart.when == Some(When::Never) => {
                (app.cron, app.run_at_start) = (Some(pattern), true);
            }
            pattern => app.recycle.cron = pattern,
        }
        readiness(&mut app, &parts);
        watching(&mut app, &mut parts, &place.directory, &mut warnings);
        parts.logs.are_apart = self.has_logs_apart();
        warnings.extend(std::mem::take(&mut parts.logs).apply(&name, &mut app.output));
        if serve::is_meant(&script, &parts.args, &app) {
            warnings.extend(serve::apply(&mut app, &parts.args));
            stops::apply_variables(&mut app).map_err(|e| format!("{name}: {e}"))?;
        } else {
            command(&mut app, script, parts, &place.directory, &mut warnings);
            stops::apply_variables(&mut app).map_err(|e| format!("{name}: {e}"))?;
            stops::apply_usual(&mut app, &place.directory);
        }
        let namespace = self.text("namespace").filter(|name| name != "default");
        app.namespace.clone_from(&namespace);
        Ok(Converted { name, namespace, app, warnings })
    }

    fn name(&self, script: &str, warnings: &mut Vec<String>) -> String {
        let Some(mut given) = self.text("name") else {
            let first = script.split(" -").next().unwrap_or(script);
            return names::of_program(Path::new(first));
        };
        if self.fields.get("append_env_to_name").is_some_and(|value| flag(value) == Ok(true))
            && let Some(chosen) = self.chosen
        {
            given = format!("{given}-{chosen}");
        }
        if let Some(prefix) = self.text("name_prefix").filter(|prefix| !given.contains(prefix)) {
            given = format!("{prefix}-{given}");
        }
        if names::is_app(&given) {
            return given;
        }
        let fit = names::fitting(&given);
        warnings.push(format!("{given:?} cannot be a name here, so it is {fit}"));
        fit
    }

    /// Takes one field.
    fn take(
        &self,
        key: &str,
        value: &Value,
        app: &mut App,
        parts: &mut Parts,
        warnings: &mut Vec<String>,
    ) -> Result<(), String> {
        match key {
            "script" | "name" | "cwd" | "port" | "namespace" | "name_prefix" => {}
            // Read where they have their effect.
            "append_env_to_name" | "merge_logs" => drop(flag(value)?),
            "args" => parts.args = words(value),
            "exec_interpreter" => match place::interpreter(&plain(value)) {
                Ok(interpreter) => parts.interpreter = Some(interpreter),
                Err(warning) => warnings.push(warning),
            },
            "node_args" => app.node_args = words(value),
            "source_map_support" => parts.has_source_maps = flag(value)?,
            "instances" => app.workers = Some(instances(value)?),
            "exec_mode" => {
                if !MODES.contains(&&*plain(value)) {
                    return Err("it must be fork or cluster".into());
                }
                if self.is_forked() && self.has_several() {
                    warnings.push("in fork mode too, workers share what they listen on".into());
                }
            }
            "env" => app.env.extend(environment(key, value, warnings)),
            "env_file" => app.env_file = list(value).into_iter().map(Into::into).collect(),
            "filter_env" => app.env_remove = filtered(value),
            "instance_var" => {
                app.slot_variable = Some(plain(value)).filter(|name| name != "NODE_APP_INSTANCE");
            }
            "increment_var" => app.increment_variable = Some(plain(value)),
            "max_memory_restart" if not_finite(value).is_some() => {}
            "max_memory_restart" => app.recycle.memory = Some(values::size(&plain(value))?),
            "min_uptime" => app.restart.min_uptime = Some(time(value)?),
            "max_restarts" if not_finite(value).is_some() => app.restart.max = Some(NO_LIMIT),
            "max_restarts" => app.restart.max = Some(number(value)?),
            "restart_delay" => parts.restart_delay = Some(time(value)?),
            "exp_backoff_restart_delay" => parts.backoff = Some(time(value)?),
            "autorestart" => app.restart.when = (!flag(value)?).then_some(When::Never),
            // As in PM2, 0 turns it off.
            "cron_restart" => parts.cron = Some(plain(value)).filter(|pattern| pattern != "0"),
            "autostart" => app.autostart = Some(flag(value)?).filter(|is_on| !is_on),
            "stop_exit_codes" => app.restart.final_codes = exit_codes(value)?,
            "shutdown_with_message" => app.shutdown_with_message = flag(value)?,
            "treekill" => app.kill_mode = (!flag(value)?).then_some(KillMode::Process),
            "kill_signal" | "stop_signal" => stops::take(value, app)?,
            "kill_timeout" => app.grace = Some(time(value)?),
            "listen_timeout" => parts.listen_timeout = Some(time(value)?),
            "wait_ready" => parts.waits_ready = flag(value)?,
            // `true` is PM2's default file.
            "out_file" | "error_file" | "log_file" | "pid_file"
                if !value.is_string()
                    && *value != true
                    && (key, value) != ("log_file", &false.into()) =>
            {
                warnings.push(format!("`{key}` has no effect: it is no path"));
            }
            "out_file" => parts.logs.out = LogPath::of(value),
            "error_file" => parts.logs.error = LogPath::of(value),
            "log_file" => parts.logs.all = LogPath::of(value),
            "pid_file" => {
                app.worker_pid_file = match LogPath::of(value) {
                    Some(LogPath::File(path)) => Some(path),
                    _ => None,
                };
            }
            "disable_logs" => app.silent = flag(value)?,
            "log_type" => match &*plain(value) {
                "json" => parts.logs.format = Some(Form::Json),
                "raw" => {}
                other => warnings.push(format!("`log_type` has no effect: {other} is not json")),
            },
            "time" | "log_date_format" => {
                if key == "log_date_format" {
                    warnings.push("times are always written as 2026-11-24T10:00:00.000Z".into());
                }
                if key == "log_date_format" || flag(value)? {
                    parts.logs.format.get_or_insert(Form::Prefixed);
                }
            }
            "uid" => app.user = Some(plain(value)),
            "gid" => app.group = Some(plain(value)),
            "watch" => {
                let paths = match value.as_str() {
                    Some("true" | "false") => Vec::new(),
                    _ => list(value),
                };
                if flag(value) == Ok(true) || !paths.is_empty() {
                    let paths = paths.into_iter().map(Into::into).collect();
                    app.watch = Some(Watch { paths, ..Watch::default() });
                }
            }
            "ignore_watch" => parts.ignored = list(value),
            "watch_options" => {
                if value.as_object().is_none_or(|options| !options.is_empty()) {
                    warnings.push("`watch_options` has no effect: they are those of PM2's watcher, and the kernel tells troop of changes".into());
                }
            }
            "watch_delay" => parts.watch_delay = Some(time(value)?),
            _ if key.starts_with("env_") => {
                let variables = environment(key, value, warnings);
                parts.environments.insert(key[4..].to_owned(), variables);
            }
            _ if SILENT.contains(&key) => {}
            _ => warnings.push(match suggest::nearest(key, KNOWN) {
                Some(meant) => format!("`{key}` means nothing here; did you mean `{meant}`?"),
                None => format!("`{key}` means nothing here"),
            }),
        }
        Ok(())
    }
}

/// Returns the variables of a field.
fn environment(key: &str, value: &Value, warnings: &mut Vec<String>) -> BTreeMap<String, String> {
    if !value.is_object() {
        warnings.push(format!("`{key}` has no effect: it is no object with variables"));
    }
    value.as_object().map(variables).unwrap_or_default()
}

/// Sets the delays of restarts: PM2's back-off overrides its fixed delay.
fn restarts(app: &mut App, parts: &Parts) {
    if app.restart.when == Some(When::Never) {
        // As in PM2, they have no effect then.
        app.restart.min_uptime = None;
        app.restart.final_codes.clear();
        return;
    }
    match (parts.backoff, parts.restart_delay) {
        (Some(backoff), _) if !backoff.0.is_zero() => {
            app.restart.delay = Some(backoff);
            app.restart.max_delay = Some(backoff.max(Time(MAX_BACKOFF)));
        }
        (_, delay) => (app.restart.delay, app.restart.max_delay) = (delay, delay),
    }
}

/// Sets what makes workers ready. In PM2 `listen_timeout` is no limit, but the time after which the
/// app counts as ready in any case.
fn readiness(app: &mut App, parts: &Parts) {
    let usual = Duration::from_secs(30);
    app.ready_timeout = parts.listen_timeout.filter(|time| time.0 > usual);
    if parts.waits_ready {
        let timeout = parts.listen_timeout.filter(|time| !time.0.is_zero());
        (app.ready, app.assume_ready) =
            (Some(Ready::Message), Some(timeout.unwrap_or(LISTEN_TIMEOUT)));
    }
}

/// Sets what is watched: paths that exist, and directories of patterns.
fn watching(app: &mut App, parts: &mut Parts, directory: &Path, warnings: &mut Vec<String>) {
    let Some(watch) = &mut app.watch else { return };
    watch.ignore = std::mem::take(&mut parts.ignored);
    watch.delay = parts.watch_delay;
    let named = std::mem::take(&mut watch.paths);
    let has_names = !named.is_empty();
    for path in named {
        let (plain, _) = crate::watch::split(&path);
        if directory.join(&path).exists() || directory.join(&plain).exists() {
            watch.paths.push(path);
        } else {
            warnings.push(format!(
                "there is no {} to watch; it is watched from the next start on at which it exists",
                directory.join(&plain).display()
            ));
        }
    }
    if has_names && watch.paths.is_empty() {
        app.watch = None;
    }
}

/// Sets the program and its arguments.
fn command(
    app: &mut App,
    script: String,
    parts: Parts,
    directory: &Path,
    warnings: &mut Vec<String>,
) {
    let Parts { args, interpreter, has_source_maps, .. } = parts;
    let is_free = interpreter.as_deref().is_none_or(|name| name == "none");
    if is_free && place::is_command_line(&script, directory) {
        if !args.is_empty() {
            warnings.push("`args` have no effect beside a script that is a command line".into());
        }
        if !app.node_args.is_empty() {
            warnings
                .push("`node_args` have no effect beside a script that is a command line".into());
        }
        (app.program, app.args) = (place::shell().into(), vec!["-c".into(), script]);
        app.node_args.clear();
        return;
    }
    let interpreter = interpreter.unwrap_or_else(|| place::usual_interpreter(&script, directory));
    let is_script = program::is_script(Path::new(&script));
    let base = Path::new(&interpreter).file_name().and_then(|name| name.to_str());
    if has_source_maps && matches!(base, Some("node" | "nodejs")) {
        app.node_args.push("--enable-source-maps".into());
    }
    if base.is_some_and(|name| name.starts_with("python")) {
        // As PM2 does, so that lines appear when they are printed.
        app.env.entry("PYTHONUNBUFFERED".into()).or_insert_with(|| "1".into());
    }
    match interpreter.as_str() {
        "node" | "nodejs" if is_script => app.args = args,
        // Its ending would select node.
        "none" if is_script => {
            let script = if script.contains('/') { script } else { format!("./{script}") };
            (app.program, app.args) = ("env".into(), [script].into_iter().chain(args).collect());
        }
        "none" if !script.contains('/') && directory.join(&script).is_file() => {
            (app.program, app.args) = (format!("./{script}"), args);
        }
        "none" => app.args = args,
        _ => {
            let before = std::mem::take(&mut app.node_args);
            app.program = interpreter;
            app.args = before.into_iter().chain([script]).chain(args).collect();
        }
    }
}

/// Returns the name of a field that PM2 knows under several, and in camel case too.
fn canonical(key: &str) -> String {
    let key = if key.starts_with("env") { Cow::Borrowed(key) } else { snake_case(key) };
    let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
    alias.map_or_else(|| key.into_owned(), |(_, name)| (*name).to_owned())
}

fn snake_case(key: &str) -> Cow<'_, str> {
    if !key.contains(|c: char| c.is_ascii_uppercase() || c == '-') {
        return Cow::Borrowed(key);
    }
    let mut text = String::new();
    for c in key.chars() {
        match c {
            '-' => text.push('_'),
            c if c.is_ascii_uppercase() => {
                text.push('_');
                text.push(c.to_ascii_lowercase());
            }
            c => text.push(c),
        }
    }
    Cow::Owned(text)
}
