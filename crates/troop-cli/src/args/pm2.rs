//! Options of PM2, with PM2's names and units.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use crate::config::{self, App, Form, Ready, Time, Workers};
use crate::program::{interpreter_of, is_executable, is_script};

/// Heading of these options in the help.
const PM2: &str = "As in PM2";

/// Further options about PM2's monitoring of programs.
const PROBES: [&str; 6] =
    ["no-automation", "trace", "disable-trace", "v8", "event-loop-inspector", "deep-monitoring"];

// PM2's options, with its names and units.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Pm2 {
    /// --workers; `max` and 0 are one per usable CPU, -1 is one less
    #[arg(help_heading = PM2, short = 'i', long, value_name = "N|max", value_parser = config::instances)]
    #[arg(allow_negative_numbers = true, conflicts_with = "workers")]
    instances: Option<Workers>,

    /// --grace, in milliseconds
    #[arg(help_heading = PM2, short, long, value_name = "MS", value_parser = millis, conflicts_with = "grace")]
    kill_timeout: Option<Time>,

    /// Time that a worker has to become ready, in milliseconds; with --wait-ready the time after which
    /// it counts as ready without having said so [default: 3000]
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    listen_timeout: Option<Time>,

    /// Wait for process.send('ready')
    #[arg(help_heading = PM2, long, conflicts_with = "ready")]
    wait_ready: bool,

    /// --restart never
    #[arg(help_heading = PM2, long, conflicts_with = "restart")]
    no_autorestart: bool,

    /// Time after which the end of a worker is not a failed start, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    min_uptime: Option<Time>,

    /// Number of restarts after which a start has failed
    #[arg(help_heading = PM2, long, value_name = "N")]
    max_restarts: Option<usize>,

    /// Delay before each restart, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    restart_delay: Option<Time>,

    /// Delay before the first restart, in milliseconds; it doubles each time
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis, conflicts_with = "restart_delay")]
    exp_backoff_restart_delay: Option<Time>,

    /// Replace all workers at these times, or with --no-autorestart run the program again: a pattern
    /// such as `0 4 * * *`
    #[arg(help_heading = PM2, long, visible_alias = "cron", value_name = "PATTERN")]
    cron_restart: Option<String>,

    /// Exit codes after which a worker is not restarted
    #[arg(help_heading = PM2, long, value_name = "CODE,…", value_delimiter = ',')]
    stop_exit_codes: Vec<i32>,

    /// Interpreter of the program, such as `python3`; `none` executes the program itself
    #[arg(help_heading = PM2, long, value_name = "PROGRAM")]
    interpreter: Option<OsString>,

    /// Arguments for the interpreter, such as node's `--max-old-space-size=500`
    #[arg(help_heading = PM2, long, visible_alias = "interpreter-args", value_name = "ARGS", value_parser = words, allow_hyphen_values = true)]
    node_args: Option<Words>,

    /// Ignore files of this name in --watch; may be repeated
    #[arg(help_heading = PM2, long, value_name = "NAME")]
    ignore_watch: Vec<String>,

    /// Time without changes before --watch reloads, in milliseconds
    #[arg(help_heading = PM2, long, value_name = "MS", value_parser = millis)]
    watch_delay: Option<Time>,

    /// --format json
    #[arg(help_heading = PM2, long, value_enum, conflicts_with = "format")]
    log_type: Option<LogType>,

    /// --format prefixed
    #[arg(help_heading = PM2, long, conflicts_with = "format")]
    time: bool,

    /// Group of apps; verbs take its name instead of the names of its apps
    #[arg(help_heading = PM2, long, value_name = "NAME", value_parser = crate::names::app)]
    namespace: Option<String>,

    /// --silent
    #[arg(help_heading = PM2, long)]
    disable_logs: bool,

    /// --time; the format of times is that of RFC 3339
    #[arg(help_heading = PM2, long, value_name = "FORMAT", conflicts_with = "format")]
    log_date_format: Option<String>,

    /// --set kill_mode=group
    #[arg(help_heading = PM2, long)]
    no_treekill: bool,

    /// Send workers the message 'shutdown' when they are to finish, before they are disconnected
    #[arg(help_heading = PM2, long)]
    shutdown_with_message: bool,

    /// Remove inherited variables with these texts in their names from the environment of workers; may be repeated
    #[arg(help_heading = PM2, long, value_name = "NAME,…", value_delimiter = ',')]
    filter_env: Vec<String>,

    /// --node-args=--enable-source-maps
    #[arg(help_heading = PM2, long)]
    source_map_support: bool,

    /// Accepted because PM2 has it: source maps are off unless node is asked for them
    #[arg(help_heading = PM2, long, hide = true)]
    disable_source_map_support: bool,

    /// Accepted because PM2 has it: programs other than scripts are executed directly anyway
    #[arg(help_heading = PM2, short = 'x', long, hide = true)]
    execute_command: bool,

    /// Accepted because PM2 has it: workers start side by side
    #[arg(help_heading = PM2, long, value_name = "N", hide = true)]
    parallel: Option<usize>,

    /// Accepted because PM2 has it: nothing is coloured unless it goes to a terminal
    #[arg(help_heading = PM2, long, hide = true)]
    no_color: bool,

    /// Start another app of a script that runs already
    #[arg(help_heading = PM2, short, long)]
    pub(crate) force: bool,

    /// Have the workers of a PM2 file share their log files
    #[arg(help_heading = PM2, long, visible_alias = "combine-logs")]
    merge_logs: bool,

    /// Accepted because PM2 has it: troop does not read the program's repository
    #[arg(help_heading = PM2, long, hide = true)]
    no_vizion: bool,

    /// Accepted because PM2 has it: nothing is injected for monitoring
    #[arg(help_heading = PM2, long, hide = true, visible_aliases = PROBES, action = ArgAction::Count)]
    no_pmx: u8,
}

/// Arguments that were given as one, split as a shell does.
#[derive(Debug, Clone)]
struct Words(Vec<String>);

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogType {
    Json,
}

/// Parses a time in milliseconds, PM2's unit, or with a unit of its own.
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
    /// Overrides the options of a file.
    pub(crate) fn apply_to(&self, app: &mut App) {
        fn set<T: Clone>(field: &mut Option<T>, typed: &Option<T>) {
            if let Some(value) = typed {
                *field = Some(value.clone());
            }
        }
        set(&mut app.workers, &self.instances);
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
            // As in PM2, a missing message is no failure.
            let timeout = self.listen_timeout.unwrap_or(config::LISTEN_TIMEOUT);
            (app.ready, app.assume_ready) = (Some(Ready::Message), Some(timeout));
            app.ready_timeout = None;
        }
        if self.no_autorestart {
            app.restart.when = Some(config::When::Never);
        }
        app.shutdown_with_message |= self.shutdown_with_message;
        app.env_remove.extend(self.filter_env.iter().map(|part| format!("*{part}*")));
        set(&mut app.namespace, &self.namespace);
        app.silent |= self.disable_logs;
        app.output.per_worker &= !self.merge_logs;
        if self.no_treekill {
            app.kill_mode = Some(config::KillMode::Group);
        }
        // As in PM2, 0 is none.
        if let Some(pattern) = self.cron_restart.clone().filter(|pattern| pattern != "0") {
            match self.no_autorestart {
                true => (app.cron, app.run_at_start) = (Some(pattern), true),
                false => app.recycle.cron = Some(pattern),
            }
        }
        if self.time || self.log_date_format.is_some() {
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
        if self.source_map_support {
            app.node_args.push("--enable-source-maps".into());
        }
    }

    /// Whether an interpreter other than node runs the program.
    fn replaces_program(&self) -> bool {
        self.interpreter
            .as_ref()
            .is_some_and(|name| name != "node" && name != "nodejs" && name != "none")
    }

    /// Returns the program to execute and its arguments: the interpreter with the script, or the
    /// program itself.
    pub(crate) fn command(
        &self,
        program: OsString,
        args: Vec<OsString>,
    ) -> (OsString, Vec<OsString>) {
        let path = Path::new(&program);
        let before = self.node_args.iter().flat_map(|words| &words.0).map(OsString::from);
        match &self.interpreter {
            // Its ending would select node.
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
            // A file without the executable bit.
            None if path.is_file() && !is_executable(path) => match interpreter_of(path) {
                Some(interpreter) => {
                    (interpreter.into(), [program].into_iter().chain(args).collect())
                }
                None => (program, args),
            },
            _ => (program, args),
        }
    }

    /// Whether an interpreter was named, which requires a program on the command line.
    pub(crate) fn names_interpreter(&self) -> bool {
        self.interpreter.is_some()
    }
}
