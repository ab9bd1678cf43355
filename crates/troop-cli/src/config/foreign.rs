//! What people write into `troop.toml` that they know from the files of other programs.

use std::sync::LazyLock;

use regex_lite::Regex;

use super::{App, Apps, TO_STREAMS};

const SUPERVISORD: &str = "supervisord";
const GUNICORN: &str = "gunicorn";
const PM2: &str = "pm2";

/// Options of other programs, and what they are here.
#[rustfmt::skip]
const OPTIONS: [(&str, &str, &str); 58] = [
    (SUPERVISORD, "command", "is `program` and `args` here"),
    (SUPERVISORD, "process_name", "is not needed: workers are `web:1`, `web:2` and so on"),
    (SUPERVISORD, "numprocs", "is `workers` here"),
    (SUPERVISORD, "numprocs_start", "is not needed: `slot_variable` names a variable with the worker's slot, from 0"),
    (SUPERVISORD, "priority", "is `after = [\"other\"]` here, for apps that start later"),
    (SUPERVISORD, "autorestart", "is `restart.when` here: \"always\", \"on-failure\" (unexpected) or \"never\""),
    (SUPERVISORD, "startsecs", "is `restart.min_uptime` here"),
    (SUPERVISORD, "startretries", "is `restart.max` here"),
    (SUPERVISORD, "exitcodes", "is `restart.final_codes` here, beside 0, with `restart.when = \"on-failure\"`"),
    (SUPERVISORD, "stopsignal", "is `stop_signal` here"),
    (SUPERVISORD, "stopwaitsecs", "is `grace` here"),
    (SUPERVISORD, "stopasgroup", "is `stop_group` here"),
    (SUPERVISORD, "killasgroup", "is `kill_mode` here, and what its default does"),
    (SUPERVISORD, "redirect_stderr", "is what `output.file` without `output.error_file` does here"),
    (SUPERVISORD, "stdout_logfile", "is `output.file` here; `silent = true` is NONE"),
    (SUPERVISORD, "stdout_logfile_maxbytes", "is `output.rotate_size` here"),
    (SUPERVISORD, "stdout_logfile_backups", "is `output.keep` here"),
    (SUPERVISORD, "stdout_syslog", "is `output.to = \"journal\"` here"),
    (SUPERVISORD, "stdout_capture_maxbytes", "is not needed: `troop events` and `troop logs` follow an app"),
    (SUPERVISORD, "stdout_events_enabled", "is not needed: `troop events` and `troop logs` follow an app"),
    (SUPERVISORD, "stderr_logfile", "is `output.error_file` here"),
    (SUPERVISORD, "stderr_logfile_maxbytes", "is `output.rotate_size` here"),
    (SUPERVISORD, "stderr_logfile_backups", "is `output.keep` here"),
    (SUPERVISORD, "stderr_syslog", "is `output.to = \"journal\"` here"),
    (SUPERVISORD, "stderr_capture_maxbytes", "is not needed: `troop events` and `troop logs` follow an app"),
    (SUPERVISORD, "stderr_events_enabled", "is not needed: `troop events` and `troop logs` follow an app"),
    (SUPERVISORD, "environment", "is `env` here"),
    (SUPERVISORD, "directory", "is `cwd` here"),
    (SUPERVISORD, "serverurl", "is not needed: each app has a control socket of its own"),
    (GUNICORN, "timeout", "is a `health` check here"),
    (GUNICORN, "graceful_timeout", "is `grace` here"),
    (GUNICORN, "max_requests", "is `recycle.connections` here"),
    (GUNICORN, "max_requests_jitter", "is `recycle.jitter` here"),
    (GUNICORN, "preload_app", "is not needed: each worker loads the program by itself"),
    (GUNICORN, "reload", "is `watch` here"),
    (GUNICORN, "reload_extra_files", "is `watch.paths` here"),
    (GUNICORN, "chdir", "is `cwd` here"),
    (GUNICORN, "daemon", "is `troop start` here"),
    (GUNICORN, "pidfile", "is `pid_file` here"),
    (GUNICORN, "raw_env", "is `env` here"),
    (GUNICORN, "proc_name", "is the name of the table here: [app.web]"),
    (GUNICORN, "reuse_port", "is `policy = \"steered\"` with `bind` here"),
    (GUNICORN, "worker_class", "remains an argument of the program (`args`)"),
    (GUNICORN, "threads", "remains an argument of the program (`args`)"),
    (GUNICORN, "accesslog", "remains an argument of the program (`args`); `output` has what workers print"),
    (GUNICORN, "errorlog", "remains an argument of the program (`args`); `output` has what workers print"),
    (PM2, "script", "is `program` here"),
    (PM2, "instances", "is `workers` here"),
    (PM2, "exec_mode", "is `alone` here: true is \"fork\""),
    (PM2, "interpreter", "is `program` here, and the script is the first of `args`"),
    (PM2, "max_memory_restart", "is `recycle.memory` here"),
    (PM2, "kill_timeout", "is `grace` here, in seconds"),
    (PM2, "listen_timeout", "is `assume_ready` here, in seconds"),
    (PM2, "wait_ready", "is `ready = \"message\"` here"),
    (PM2, "out_file", "is `output.file` here"),
    (PM2, "max_restarts", "is `restart.max` here"),
    (PM2, "restart_delay", "is `restart.delay` here, in seconds"),
    (PM2, "cron_restart", "is `recycle.cron` here"),
];

/// Returns what an unknown option is here that another program has.
pub(crate) fn instead(option: &str) -> Option<String> {
    let (whose, _, is) = OPTIONS.iter().find(|(_, known, _)| *known == option)?;
    let shown = if *whose == PM2 { "PM2" } else { whose };
    Some(format!("{shown}'s `{option}` {is} (docs/coming-from-{whose}.md)"))
}

/// Returns what to do with a file of another program, if it is one.
pub(crate) fn file(text: &str) -> Option<String> {
    const KINDS: [&str; 4] = ["program", "fcgi-program", "eventlistener", "group"];
    let is_section = |line: &str| {
        let name = line.strip_prefix('[').and_then(|rest| rest.split_once(':'));
        name.is_some_and(|(kind, rest)| KINDS.contains(&kind) && rest.ends_with(']'))
    };
    let section = text.lines().map(str::trim).find(|line| is_section(line))?;
    Some(format!(
        "this is a file of supervisord's ({section}), which is not read: docs/coming-from-supervisord.md says what each of its fields is in a troop.toml, which `troop init PROGRAM` begins"
    ))
}

/// Returns warnings about what means something in files of other programs alone, and takes troop's own
/// streams for no files.
pub(super) fn warnings(apps: &mut Apps) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, app) in apps {
        if app.output.without_streams() {
            warnings.push(format!("app.{name}.output: {TO_STREAMS}"));
        }
        if let Some(found) = expression(app) {
            warnings.push(format!(
                "app.{name}: {found} stays as it is; supervisord's %(ENV_HOME)s is \"${{HOME}}\" here, and workers have their slot in TROOP_SLOT"
            ));
        }
    }
    warnings
}

/// Returns an expression of supervisord's in the values of an app: `%(process_num)02d`.
fn expression(app: &App) -> Option<String> {
    static EXPRESSION: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r"%\((ENV_\w+|process_num|program_name|group_name|host_node_name|numprocs|here)\)\d*[sd]").ok()
    });
    let texts = [&app.program].into_iter().chain(&app.args).chain(app.env.values());
    let files = [&app.output.file, &app.output.error_file, &app.cwd].into_iter().flatten();
    let texts = texts.cloned().chain(files.map(|path| path.to_string_lossy().into_owned()));
    let found = |text: String| Some(EXPRESSION.as_ref()?.find(&text)?.as_str().to_owned());
    texts.into_iter().find_map(found)
}

/// Returns the hint for a program that is a whole command line: `python3 app.py --port 8000`.
pub(crate) fn command_line(program: &str) -> Option<String> {
    let words = shlex::split(program)?;
    let (first, rest) = words.split_first().filter(|(_, rest)| !rest.is_empty())?;
    let text = |word: &String| toml::Value::String(word.clone()).to_string();
    let args: Vec<_> = rest.iter().map(text).collect();
    Some(format!(
        "arguments stand in `args`: program = {}, args = [{}]; for what a shell is to understand, program = \"sh\", args = [\"-c\", {}]",
        text(first),
        args.join(", "),
        text(&program.to_owned())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_other_programs_are_none_of_troops_own() {
        let schema: serde_json::Value = serde_json::from_str(&crate::config::schema()).unwrap();
        let known = schema["$defs"]["App"]["properties"].as_object().unwrap();
        assert!(known.contains_key("program"));
        for (_, option, _) in OPTIONS {
            assert!(!known.contains_key(option), "{option}");
        }
    }

    #[test]
    fn files_of_supervisord_are_known_by_their_sections() {
        assert!(file("; x\n[supervisord]\n[program:web]\ncommand=x\n").is_some());
        assert_eq!(file("[app.web]\nprogram = \"[program:web]\"\n"), None);
    }
}
