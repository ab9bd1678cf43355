//! Options that PM2 has, under PM2's names and in its units, for fingers that know them.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::config::{self, App, Form, Ready, Time};
use crate::program::{interpreter_of, is_executable, is_script};

/// Where they stand in the help.
const PM2: &str = "As in PM2";

/// PM2's options, with its names and units.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Pm2 {
    /// The same as --grace, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis, conflicts_with = "grace")]
    kill_timeout: Option<Time>,

    /// How long a worker may take to be ready, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    listen_timeout: Option<Time>,

    /// The same as --ready message
    #[arg(help_heading = PM2, long, conflicts_with = "ready")]
    wait_ready: bool,

    /// The same as --restart never
    #[arg(help_heading = PM2, long, conflicts_with = "restart")]
    no_autorestart: bool,

    /// How long a worker must have run for its end not to count as a failed start, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    min_uptime: Option<Time>,

    /// How many restarts in a row, or in a while, are too many
    #[arg(help_heading = PM2, long, value_name = "N")]
    max_restarts: Option<usize>,

    /// The pause before a restart, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    restart_delay: Option<Time>,

    /// The first pause before a restart, in milliseconds; the next ones grow
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis, conflicts_with = "restart_delay")]
    exp_backoff_restart_delay: Option<Time>,

    /// Exit codes after which a worker is not started again
    #[arg(help_heading = PM2, long, value_name = "CODE,…", value_delimiter = ',')]
    stop_exit_codes: Vec<i32>,

    /// What runs the program: `node` for a script with another ending, `python3`, …; `none` for the
    /// program itself
    #[arg(help_heading = PM2, long, value_name = "PROGRAM")]
    interpreter: Option<OsString>,

    /// Arguments for what runs the program, such as node's `--max-old-space-size=500`
    #[arg(help_heading = PM2, long, visible_alias = "interpreter-args", value_name = "ARGS", value_parser = words, allow_hyphen_values = true)]
    node_args: Option<Words>,

    /// Names that --watch ignores; may be repeated
    #[arg(help_heading = PM2, long, value_name = "NAME")]
    ignore_watch: Vec<String>,

    /// How long there must be quiet before --watch reloads, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    watch_delay: Option<Time>,

    /// `json` is the same as --format json
    #[arg(help_heading = PM2, long, value_enum, conflicts_with = "format")]
    log_type: Option<LogType>,

    /// The same as --format prefixed
    #[arg(help_heading = PM2, long, conflicts_with = "format")]
    time: bool,
}

/// Several words in one.
#[derive(Debug, Clone)]
struct Words(Vec<String>);

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogType {
    Json,
}

/// PM2's unit, or a time with its unit.
fn millis(text: &str) -> Result<Time, String> {
    match text
        .parse::<f64>()
        .ok()
        .and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok())
    {
        Some(time) => config::bounded(time),
        None => config::time(text)
            .map_err(|_| "it must be a number of milliseconds, or a time such as 5s".into()),
    }
}

fn words(text: &str) -> Result<Words, String> {
    shlex::split(text).map(Words).ok_or_else(|| "a quotation does not end".into())
}

impl Pm2 {
    /// Goes before what a file says.
    pub(crate) fn lay_over(&self, app: &mut App) {
        fn set<T: Clone>(field: &mut Option<T>, typed: &Option<T>) {
            if let Some(value) = typed {
                *field = Some(value.clone());
            }
        }
        set(&mut app.grace, &self.kill_timeout);
        set(&mut app.ready_timeout, &self.listen_timeout);
        set(&mut app.restart.min_uptime, &self.min_uptime);
        set(&mut app.restart.max, &self.max_restarts);
        set(&mut app.restart.delay, &self.restart_delay);
        set(&mut app.restart.max_delay, &self.restart_delay);
        set(&mut app.restart.delay, &self.exp_backoff_restart_delay);
        if !self.stop_exit_codes.is_empty() {
            app.restart.final_codes.clone_from(&self.stop_exit_codes);
        }
        if self.wait_ready {
            app.ready = Some(Ready::Message);
        }
        if self.no_autorestart {
            app.restart.when = Some(config::When::Never);
        }
        if self.time {
            app.output.format = Some(Form::Prefixed);
        }
        if let Some(LogType::Json) = self.log_type {
            app.output.format = Some(Form::Json);
        }
        if let Some(watch) = &mut app.watch {
            watch.ignore.extend(self.ignore_watch.iter().cloned());
            set(&mut watch.delay, &self.watch_delay);
        }
        if let Some(Words(words)) = self.node_args.as_ref().filter(|_| !self.replaces_program()) {
            app.node_args.clone_from(words);
        }
    }

    /// Whether something else than node runs the program.
    fn replaces_program(&self) -> bool {
        self.interpreter
            .as_ref()
            .is_some_and(|name| name != "node" && name != "nodejs" && name != "none")
    }

    /// What is to be executed when this program is named: the interpreter, if there is one.
    pub(crate) fn command(
        &self,
        program: OsString,
        args: Vec<OsString>,
    ) -> (OsString, Vec<OsString>) {
        let path = Path::new(&program);
        let before = self.node_args.iter().flat_map(|words| &words.0).map(OsString::from);
        match &self.interpreter {
            // Under node it would be, by its ending.
            Some(interpreter) if interpreter == "none" && is_script(path) => {
                let path = if path.components().count() == 1 {
                    Path::new(".").join(path)
                } else {
                    path.to_owned()
                };
                ("env".into(), [path.into_os_string()].into_iter().chain(args).collect())
            }
            Some(interpreter) if self.replaces_program() => {
                (interpreter.clone(), before.chain([program]).chain(args).collect())
            }
            Some(interpreter) if interpreter != "none" && !is_script(path) => {
                (interpreter.clone(), [program].into_iter().chain(args).collect())
            }
            // What cannot be executed as it is.
            None if path.is_file() && !is_executable(path) => match interpreter_of(path) {
                Some(interpreter) => {
                    (interpreter.into(), [program].into_iter().chain(args).collect())
                }
                None => (program, args),
            },
            _ => (program, args),
        }
    }

    /// Whether something is said that only makes sense for a program that is typed too.
    pub(crate) fn names_interpreter(&self) -> bool {
        self.interpreter.is_some()
    }
}
