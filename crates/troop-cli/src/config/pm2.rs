//! Reads PM2's `ecosystem.config.js` and its other formats.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Map, Value};

use super::app::{App, Form, Ready, Watch, When};
use super::values::{self, Time, Workers};
use super::{Apps, source};
use crate::names;
use crate::program;

/// Fields that have no effect here and cause no warning.
const SILENT: [&str; 5] = ["pmx", "vizion", "automation", "merge_logs", "combine_logs"];

/// Reads a file; returns its apps and warnings about fields without effect.
pub(super) fn read(file: &Path) -> Result<(Apps, Vec<String>), String> {
    from_value(load(file)?, file)
}

/// Converts the value of a file to apps.
pub(super) fn from_value(value: Value, file: &Path) -> Result<(Apps, Vec<String>), String> {
    let shown = file.display();
    let (list, mut warnings) = match value {
        Value::Array(list) => (list, Vec::new()),
        Value::Object(mut all) => {
            let apps = all.remove("apps");
            let apps = match apps {
                Some(Value::Array(list)) => list,
                Some(one @ Value::Object(_)) => vec![one],
                // A file can hold a single app without a list.
                None if all.contains_key("script") => vec![Value::Object(std::mem::take(&mut all))],
                _ => return Err(format!("{shown} has no list `apps`")),
            };
            (apps, all.keys().map(|key| format!("`{key}` means nothing here")).collect())
        }
        _ => return Err(format!("{shown} has no list `apps`")),
    };
    if let Some(chosen) = CHOSEN.get() {
        let wanted = format!("env_{chosen}");
        if !list.iter().any(|app| app.get(&wanted).is_some()) {
            let keys = list.iter().filter_map(Value::as_object).flat_map(Map::keys);
            let others: BTreeSet<_> = keys.filter_map(|key| key.strip_prefix("env_")).collect();
            let others = if others.is_empty() {
                "there are no others".into()
            } else {
                others.into_iter().collect::<Vec<_>>().join(", ")
            };
            return Err(format!("{shown}: no app has an environment `{wanted}`: {others}"));
        }
    }
    let directory = std::path::absolute(file)
        .ok()
        .and_then(|file| file.parent().map(Path::to_owned))
        .unwrap_or_default();
    let mut apps = Apps::new();
    for value in list {
        let Value::Object(fields) = value else {
            return Err(format!("{shown}: an app must be an object, not {value}"));
        };
        let (name, app, about) = app(fields, &directory).map_err(|e| format!("{shown}: {e}"))?;
        warnings.extend(about.into_iter().map(|text| format!("{name}: {text}")));
        if apps.insert(name.clone(), app).is_some() {
            return Err(format!("{shown} has two apps {name}"));
        }
    }
    Ok((apps, warnings))
}

fn load(file: &Path) -> Result<Value, String> {
    let shown = file.display();
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => source::parsed(file, source::text(file)?, json),
        Some("yml" | "yaml") => source::parsed(file, source::text(file)?, source::yaml),
        // The file is a program, which only node can evaluate.
        _ => {
            source::text(file)?;
            source::may_run(file)?;
            let path = std::path::absolute(file).map_err(|e| format!("{shown}: {e}"))?;
            let script = "import(require('url').pathToFileURL(process.argv[1])).then(m => console.log(JSON.stringify(m.default ?? m)))";
            let printed = source::run(Command::new("node").args(["-e", script, "--"]).arg(path))
                .map_err(|e| format!("cannot run node to read {shown}: {e}"))?;
            if !printed.is_success {
                let last = printed.err.lines().map(str::trim).rfind(|line| line.contains("Error"));
                return Err(format!(
                    "{shown} fails: {}",
                    source::concise(last.unwrap_or("node could not run it"))
                ));
            }
            // Such files may print text of their own.
            let last = printed.out.lines().next_back().unwrap_or_default().to_owned();
            source::parsed(file, last, |text| {
                serde_json::from_str(text)
                    .map_err(|e| format!("it does not export what it should: {e}"))
            })
        }
    }
}

pub(super) fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// Converts a list, or a list that is written as a single text.
fn list(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().map(plain).collect(),
        Value::Null | Value::Bool(_) => Vec::new(),
        one => vec![plain(one)],
    }
}

fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => shlex::split(text).unwrap_or_else(|| vec![text.clone()]),
        other => list(other),
    }
}

/// Converts a value to text without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Converts a time; PM2's numbers are milliseconds.
fn time(value: &Value) -> Result<Time, String> {
    match value.as_u64().or_else(|| plain(value).trim().parse().ok()) {
        Some(millis) => values::bounded(Duration::from_millis(millis)),
        None => values::time(&plain(value)),
    }
}

fn is_on(value: &Value) -> bool {
    matches!(value, Value::Bool(true)) || matches!(value.as_str(), Some("true"))
}

fn app(fields: Map<String, Value>, directory: &Path) -> Result<(String, App, Vec<String>), String> {
    let script = ["script", "exec", "cmd", "command"]
        .iter()
        .find_map(|key| fields.get(*key))
        .and_then(Value::as_str);
    let script = script.ok_or("an app has no `script`")?.to_owned();
    let mut warnings = Vec::new();
    let given = fields.get("name").map(plain);
    let name = match &given {
        Some(name) if names::is_app(name) => name.clone(),
        Some(name) => {
            let fit = names::of_program(Path::new(&format!("{}.js", name.replace('.', "-"))));
            warnings.push(format!("{name:?} cannot be a name here, so it is {fit}"));
            fit
        }
        None => names::of_program(Path::new(&script)),
    };
    let mut app = App::new(script.clone());
    // PM2's default is one instance.
    app.workers = Some(Workers::Number(1));
    let at =
        fields.get("cwd").map_or_else(|| directory.to_owned(), |cwd| directory.join(plain(cwd)));
    let (mut args, mut interpreter) = (Vec::new(), usual_interpreter(&script, &at));
    let mut environments = BTreeMap::new();
    for (key, value) in fields.iter().filter(|(_, value)| !is_nothing(value)) {
        let wrong = |e: String| format!("{name}: {key}: {e}");
        match key.as_str() {
            "script" | "exec" | "cmd" | "command" | "name" => {}
            "cwd" => app.cwd = Some(plain(value).into()),
            "args" => args = words(value),
            "interpreter" | "exec_interpreter" => interpreter = plain(value),
            "node_args" | "interpreter_args" | "interpreterArgs" => app.node_args = words(value),
            "instances" => app.workers = Some(instances(value).map_err(wrong)?),
            "exec_mode" => {
                let several = fields.get("instances").is_some_and(|n| n != 1 && n != "1");
                if plain(value).starts_with("fork") && several {
                    warnings.push("in fork mode too, workers share what they listen on".into());
                }
            }
            "env" => app.env.extend(variables(value)),
            "env_file" => app.env_file = list(value).into_iter().map(Into::into).collect(),
            "max_memory_restart" => {
                app.recycle.memory = Some(values::size(&plain(value)).map_err(wrong)?)
            }
            "min_uptime" => app.restart.min_uptime = Some(time(value).map_err(wrong)?),
            "max_restarts" => {
                app.restart.max = Some(
                    plain(value).trim().parse().map_err(|_| wrong("it must be a number".into()))?,
                );
            }
            "restart_delay" => {
                let delay = time(value).map_err(wrong)?;
                (app.restart.delay, app.restart.max_delay) = (Some(delay), Some(delay));
            }
            "exp_backoff_restart_delay" => app.restart.delay = Some(time(value).map_err(wrong)?),
            "autorestart" if !is_on(value) => app.restart.when = Some(When::Never),
            "autorestart" => {}
            "stop_exit_codes" => {
                app.restart.final_codes =
                    list(value).iter().filter_map(|code| code.parse().ok()).collect();
            }
            "shutdown_with_message" => app.shutdown_with_message = is_on(value),
            "kill_timeout" => app.grace = Some(time(value).map_err(wrong)?),
            "listen_timeout" => app.ready_timeout = Some(time(value).map_err(wrong)?),
            "wait_ready" => app.ready = is_on(value).then_some(Ready::Message),
            "out_file" | "out" | "output" | "log_file" | "log"
                if !matches!(value, Value::Bool(_)) =>
            {
                app.output.file = Some(plain(value).into());
            }
            "error_file" | "err_file" | "error" | "err" => {
                app.output.error_file = Some(plain(value).into())
            }
            "log_type" => app.output.format = (plain(value) == "json").then_some(Form::Json),
            "time" | "log_date_format" => {
                app.output.format.get_or_insert(Form::Prefixed);
                if key == "log_date_format" {
                    warnings.push("times are always written as 2026-11-24T10:00:00.000Z".into());
                }
            }
            "uid" | "user" => app.user = Some(plain(value)),
            "gid" | "group" => app.group = Some(plain(value)),
            "instance_var" => {
                app.slot_variable = Some(plain(value)).filter(|name| name != "NODE_APP_INSTANCE")
            }
            "port" => drop(app.env.insert("PORT".into(), plain(value))),
            "watch" => {
                let paths: Vec<_> = list(value).into_iter().map(Into::into).collect();
                if is_on(value) || !paths.is_empty() {
                    app.watch.get_or_insert_with(Watch::default).paths = paths;
                }
            }
            "ignore_watch" | "watch_delay"
                if !fields.get("watch").is_some_and(|on| is_on(on) || on.is_array()) => {}
            "ignore_watch" => app.watch.get_or_insert_with(Watch::default).ignore = list(value),
            "watch_delay" => {
                app.watch.get_or_insert_with(Watch::default).delay =
                    Some(time(value).map_err(wrong)?)
            }
            "treekill" if is_on(value) => {}
            other if other.starts_with("env_") => {
                drop(environments.insert(other[4..].to_owned(), variables(value)))
            }
            other if SILENT.contains(&other) => {}
            other => warnings.push(format!("`{other}` means nothing here")),
        }
    }
    if let Some(chosen) = CHOSEN.get() {
        // At least one app of the file has the environment.
        app.env.extend(environments.remove(chosen).unwrap_or_default());
    } else if !environments.is_empty() {
        let names: Vec<_> = environments.keys().map(|name| format!("`--env {name}`")).collect();
        warnings.push(format!("more variables can be chosen with {}", names.join(", ")));
    }
    match interpreter.as_str() {
        "node" | "nodejs" if program::is_script(Path::new(&script)) => app.args = args,
        // Its ending would select node.
        "none" if program::is_script(Path::new(&script)) => {
            let script = if script.contains('/') { script } else { format!("./{script}") };
            (app.program, app.args) = ("env".into(), [script].into_iter().chain(args).collect());
        }
        "none" if Path::new(&script).components().count() == 1 && at.join(&script).exists() => {
            (app.program, app.args) = (format!("./{script}"), args);
        }
        "none" => app.args = args,
        interpreter => {
            let before = std::mem::take(&mut app.node_args);
            app.program = interpreter.to_owned();
            app.args = before.into_iter().chain([script]).chain(args).collect();
        }
    }
    Ok((name, app, warnings))
}

/// Returns the interpreter that PM2 chooses for a script: by its ending, else node; none for an
/// executable without an ending. The path is relative to the app's working directory.
fn usual_interpreter(script: &str, at: &Path) -> String {
    let path = at.join(script);
    let by_ending = match Path::new(script).extension().and_then(|extension| extension.to_str()) {
        Some(_) => program::interpreter_of(Path::new(script)).unwrap_or("node"),
        // The name of a command, not of a file.
        None if !path.exists() => "none",
        None if program::is_executable(&path) => "none",
        None => "node",
    };
    by_ending.into()
}

/// Whether PM2 treats a value as absent.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || matches!(value.as_str(), Some("NULL"))
}

/// The chosen environment: `--env production` selects `env_production`.
static CHOSEN: OnceLock<String> = OnceLock::new();

/// Chooses the environment, once per process.
pub(crate) fn choose(environment: &str) {
    let _ = CHOSEN.set(environment.to_owned());
}

fn variables(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten();
    all.filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), plain(value)))
        .collect()
}

fn instances(value: &Value) -> Result<Workers, String> {
    match plain(value).as_str() {
        // One instance per CPU.
        "0" | "max" => Ok(Workers::Auto),
        text => values::workers(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_app(text: &str) -> (String, App, Vec<String>) {
        let Value::Object(fields) = serde_json::from_str(text).unwrap() else {
            panic!("an object")
        };
        app(fields, Path::new("")).unwrap()
    }

    #[test]
    fn each_field_that_means_something_here_is_taken() {
        let (name, app, warnings) = read_app(
            r#"{
                "name": "api", "script": "server.js", "cwd": "/srv", "args": "--port 80 'a b'", "node_args": ["--inspect"],
                "instances": "max", "exec_mode": "cluster", "env": {"A": 1, "B": "x", "C": null}, "max_memory_restart": "300M",
                "min_uptime": "5s", "max_restarts": 7, "restart_delay": 250, "autorestart": false, "stop_exit_codes": [0, 3],
                "kill_timeout": 1600, "shutdown_with_message": true, "listen_timeout": 8000, "wait_ready": true, "out_file": "o.log", "error_file": "e.log",
                "log_type": "json", "uid": "www", "gid": 33, "instance_var": "N", "port": 3000, "watch": ["src"],
                "ignore_watch": ["tmp"], "watch_delay": 500, "merge_logs": true, "treekill": true
            }"#,
        );
        assert_eq!((name.as_str(), &warnings[..]), ("api", &[][..]));
        assert_eq!(
            (app.program.as_str(), &app.args.join("|")[..], &app.node_args[..]),
            ("server.js", "--port|80|a b", &["--inspect".to_owned()][..])
        );
        assert_eq!(
            (app.workers, app.recycle.memory.map(|m| m.0)),
            (Some(Workers::Auto), Some(300 << 20))
        );
        let env: Vec<_> = app.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=1", "B=x", "PORT=3000"]);
        let millis = |time: Option<Time>| time.map(|time| time.0.as_millis());
        assert_eq!(
            (
                millis(app.restart.min_uptime),
                millis(app.restart.delay),
                millis(app.restart.max_delay)
            ),
            (Some(5000), Some(250), Some(250))
        );
        assert_eq!(
            (app.restart.max, app.restart.when, &app.restart.final_codes[..]),
            (Some(7), Some(When::Never), &[0, 3][..])
        );
        assert_eq!(
            (millis(app.grace), app.shutdown_with_message, millis(app.ready_timeout), app.ready),
            (Some(1600), true, Some(8000), Some(Ready::Message))
        );
        assert_eq!(
            (app.output.file.unwrap(), app.output.error_file.unwrap(), app.output.format),
            ("o.log".into(), "e.log".into(), Some(Form::Json))
        );
        assert_eq!(
            (app.user.as_deref(), app.group.as_deref(), app.slot_variable.as_deref()),
            (Some("www"), Some("33"), Some("N"))
        );
        let watch = app.watch.unwrap();
        assert_eq!(
            (watch.paths, watch.ignore, millis(watch.delay)),
            (vec!["src".into()], vec!["tmp".into()], Some(500))
        );
    }

    #[test]
    fn what_means_nothing_here_is_said() {
        let (name, app, warnings) = read_app(
            r#"{"name": "my app", "script": "x.py", "interpreter": "python3", "cron_restart": "0 0 * * *"}"#,
        );
        assert_eq!(
            (name.as_str(), app.program.as_str(), &app.args[..]),
            ("my-app", "python3", &["x.py".to_owned()][..])
        );
        assert!(
            warnings.iter().any(|w| w.contains("cron_restart"))
                && warnings.iter().any(|w| w.contains("my-app")),
            "{warnings:?}"
        );
        assert_eq!(app.workers, Some(Workers::Number(1)));
    }

    #[test]
    fn scripts_run_with_what_their_ending_says() {
        for (script, program, args) in [
            ("a.py", "python3", "a.py"),
            ("b.sh", "bash", "b.sh"),
            ("c.js", "c.js", ""),
            ("sleep", "sleep", ""),
        ] {
            let (_, app, _) = read_app(&format!(
                r#"{{"script": "{script}", "out_file": null, "error_file": "NULL"}}"#
            ));
            assert_eq!((app.program.as_str(), app.args.join(" ").as_str()), (program, args));
            assert!(app.output.file.is_none() && app.output.error_file.is_none());
        }
    }
}
