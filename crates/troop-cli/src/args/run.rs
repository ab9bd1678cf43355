//! Options of `run` and `start`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum as _};
use troop::Scheduling;
use troop::policy::{BadScheduling, Pattern};

use super::pm2::Pm2;
use crate::config::{self, Form, LogFormat, Ready, Size, Time, When, Workers};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop run server.js                  one worker, on the port that server.js listens on
  troop run -w auto server.js          one worker per CPU, all on that port
  troop run -w 4 --policy steered ./my-server --port 8000
  troop run --policy 8000=sticky:proxy=pass --policy 9000=p2c server.js
  troop run --env NODE_ENV=production --cwd /srv/app server.js
  troop run -b 8000 -w 4 uvicorn app:app --fd {fd}
  troop run                            all apps of the troop.toml in this directory, or of another file
  troop run web jobs                   apps of that file
  troop run \"npm run dev\"              a whole command; also: troop run npm run dev
  troop run api.js jobs.js             several scripts; as arguments they stand behind `--`
  troop run --name web server.js       then, in another terminal: troop ls, troop reload web, troop scale web 8
  troop run -w 0 server.js             the program without troop, for a debugger

Exit codes: 0 after a graceful stop, 1 if workers cannot be kept running (the program's code if it is not restarted), 2 for invalid usage or configuration.")]
pub(crate) struct Foreground {
    #[command(flatten)]
    pub(crate) run: Run,

    /// Of several apps of a file, let the others go on when one has failed
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Accepted because `start` has it
    #[arg(long, hide = true, visible_alias = "no-daemonize")]
    pub(crate) no_daemon: bool,

    /// Accepted because `start` has it: the output is here
    #[arg(long, hide = true)]
    pub(crate) attach: bool,

    /// Accepted because `start` has it: the environment is that of this shell
    #[arg(long, hide = true)]
    pub(crate) update_env: bool,

    /// Refused: the output is that of the program
    #[arg(long, hide = true)]
    pub(crate) json: bool,

    /// Refused: nothing is waited for here
    #[arg(long, hide = true)]
    pub(crate) no_wait: bool,

    /// The program's arguments; further scripts, or names of apps of the file
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

impl Foreground {
    /// Returns what to do instead of an option of `start` that means nothing here.
    pub(crate) fn refused(&self) -> Option<&'static str> {
        match (self.json, self.no_wait) {
            (true, _) => {
                Some("--json is for `troop start`; `troop run --log json` prints events as JSON")
            }
            (_, true) => {
                Some("--no-wait is for `troop start`: `troop run` stays in the foreground")
            }
            _ => None,
        }
    }
}

// The program and how it is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// Name of the app for `troop ls`, `reload` and the other verbs [default: the program's name,
    /// with a number if that is taken]
    #[arg(short, long, value_parser = crate::names::app)]
    pub(crate) name: Option<String>,

    /// Number of workers, or `auto` for one per usable CPU (affinity and cgroup quota count); 0 runs
    /// the program alone [default: 1; for apps of troop.toml: auto]
    #[arg(short, long, value_name = "N|auto", value_parser = config::workers)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) workers: Option<Workers>,

    /// Run the program as no part of a cluster, as PM2's fork mode does: it listens by itself, and may
    /// be the primary of a cluster of its own. A reload stops it before it starts it again
    #[arg(long, conflicts_with = "bind")]
    pub(crate) alone: bool,

    /// Listen on this address and pass the socket to the program, as systemd does (LISTEN_FDS,
    /// LISTEN_PID, LISTEN_FDNAMES) and Einhorn (EINHORN_FD_0, …): for programs that do not speak
    /// Node's protocol (gunicorn, uvicorn, Go, Rust with listenfd). May be repeated.
    ///
    /// ADDR is `8000`, `127.0.0.1:8000`, `udp:53`, a path, or `systemd:NAME` for a socket that
    /// systemd passed to troop. In the program's arguments, `{fd}` becomes the number of the first
    /// socket, which is 3, `{fd1}` that of the next one. The kernel decides which worker accepts: all
    /// on one socket, or, with `--policy steered`, each on its own, evenly (`least-connections`:
    /// rather those with few). SIGTERM stops these workers. Behind a shell or npm see `troop
    /// exec-activated`.
    #[arg(short, long, value_name = "[NAME=]ADDR")]
    pub(crate) bind: Vec<String>,

    /// Scheduling of connections. May be repeated, with ADDR= for the listeners of one port, address
    /// or path.
    ///
    /// auto: in exact turns while connections are few, as under steered while they are many (the
    /// default, unless NODE_CLUSTER_SCHED_POLICY overrides it). round-robin: always in exact turns.
    /// weighted: in turns by --weights. least-connections, p2c: to the least busy, or to the less
    /// busy of two. sticky: by client. shared: workers accept by themselves, and the kernel decides.
    /// steered: the kernel runs a program of troop's, at no cost per connection. `sticky:` takes
    /// prefix=BITS, prefix6=BITS, proxy=pass|strip, cookie=NAME, query=NAME, wait=MILLISECONDS;
    /// `steered:sticky` uses the client's address in the kernel.
    #[arg(long, value_name = "[ADDR=]POLICY", env = "TROOP_POLICY", value_delimiter = ';', value_parser = chosen)]
    pub(crate) policy: Vec<Chosen>,

    /// Restrict where workers may listen: `8000`, `127.0.0.1:8000`, `udp:53`, a path,
    /// `@abstract`, `fd:3`; may be repeated [default: anywhere]
    #[arg(long, value_name = "ADDR", conflicts_with = "bind")]
    pub(crate) may_listen: Vec<Pattern>,

    /// Let workers listen on this descriptor, which troop inherited; may be repeated. Descriptors
    /// from systemd are offered anyway
    #[arg(long = "offer-fd", value_name = "N", conflicts_with = "bind")]
    pub(crate) fd: Vec<i32>,

    /// Weights of the workers, by slot; 100 is usual: `5,100,100` makes the first of three a canary
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) weights: Vec<u32>,

    /// Set an environment variable of the workers; may be repeated. Without a value: use the
    /// environment of this name in a PM2 file
    #[arg(long, value_name = "NAME=VALUE", value_parser = env)]
    pub(crate) env: Vec<Env>,

    /// Read environment variables of the workers from this file, one NAME=VALUE per line; may be
    /// repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Working directory of the workers
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,

    /// Run workers as this user, with its groups
    #[arg(long, visible_alias = "uid")]
    pub(crate) user: Option<String>,

    /// Run workers as this group
    #[arg(long, visible_alias = "gid")]
    pub(crate) group: Option<String>,

    /// Grace period: time that a worker has to drain before it is killed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = config::time)]
    pub(crate) grace: Option<Time>,

    /// Move idle connections of Node workers to other workers when theirs drains, by a script that
    /// node loads before the program; false: close them, as Node does [default: true]
    #[arg(long, value_name = "BOOL")]
    pub(crate) move_connections: Option<bool>,

    /// Move idle connections from workers with more than their share to workers with fewer
    /// [default: true]
    #[arg(long, value_name = "BOOL")]
    pub(crate) rebalance: Option<bool>,

    /// What makes a worker ready [default: auto]
    #[arg(long, value_enum)]
    pub(crate) ready: Option<Ready>,

    /// Replace workers with more resident memory than this, such as 300M
    #[arg(long, visible_alias = "max-memory-restart", value_name = "SIZE", value_parser = config::size)]
    pub(crate) max_memory: Option<Size>,

    /// Replace workers older than this, such as 1d
    #[arg(long, value_name = "TIME", value_parser = config::time)]
    pub(crate) max_age: Option<Time>,

    /// Check the health of each worker by GET requests for this path, and replace workers that fail
    #[arg(long, value_name = "PATH")]
    pub(crate) health: Option<String>,

    /// When to restart a worker that has ended [default: always]
    #[arg(long, value_enum)]
    pub(crate) restart: Option<When>,

    /// Reload when files change: those of the app's directory, or these
    #[arg(long, value_name = "PATH,…", value_delimiter = ',', num_args = 0.., require_equals = true)]
    pub(crate) watch: Option<Vec<PathBuf>>,

    /// Discard the output of the workers; errors still quote the end of standard error
    #[arg(long)]
    pub(crate) silent: bool,

    /// Write the output of the workers, and nothing else, to this file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Write their standard error to this file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) error: Option<PathBuf>,

    /// Format of output lines [default: prefixed in files, else plain]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Form>,

    /// Format of events on standard error, `human` or `json` [default: human]; another value is a
    /// file for the output of the workers and their standard error, as in PM2
    #[arg(short, long, value_name = "FORMAT|FILE", value_parser = log)]
    pub(crate) log: Option<LogOption>,

    /// Set any option of troop.toml, such as `--set restart.max=3`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,

    #[command(flatten)]
    pub(crate) pm2: Pm2,

    /// Run the app in this process alone, without another one that keeps it
    #[arg(long)]
    pub(crate) no_keeper: bool,

    /// Read apps from a file; PROGRAM then names one of them. Command-line options override the file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Of a file with several apps, only these; may be repeated
    #[arg(long, value_name = "APP,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// The program: a script (.js, .mjs, .cjs, .ts) runs under node, anything else is executed. Or
    /// the name of an app in troop.toml, or a file with apps; optional if troop.toml has only one app
    pub(crate) program: Option<OsString>,

    /// The program's arguments.
    #[arg(skip)]
    pub(crate) args: Vec<OsString>,

    /// `troop start --no-wait`: no process waits for the report.
    #[arg(skip)]
    pub(crate) unawaited: bool,
}

/// The value of `--env`: a variable, or the name of an environment in a PM2 file.
#[derive(Debug, Clone)]
pub(crate) enum Env {
    Variable(String, String),
    Chosen(String),
}

/// The value of `--log`: the format of events or, as in PM2, a file for all output.
#[derive(Debug, Clone)]
pub(crate) enum LogOption {
    Format(LogFormat),
    File(PathBuf),
}

/// The value of `--policy`: a policy, and the listeners that it applies to, if not to all.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) listeners: Option<Pattern>,
    pub(crate) scheduling: Scheduling,
}

pub(super) fn chosen(text: &str) -> Result<Chosen, BadScheduling> {
    // Options of a policy contain `=` too, but after its name and a colon.
    let address = text
        .split_once('=')
        .filter(|(before, _)| before.parse::<Pattern>().is_ok() || !before.contains(':'));
    match address {
        Some((address, policy)) => {
            Ok(Chosen { listeners: Some(address.parse()?), scheduling: policy.parse()? })
        }
        None => Ok(Chosen { listeners: None, scheduling: text.parse()? }),
    }
}

fn log(text: &str) -> Result<LogOption, String> {
    match LogFormat::from_str(text, false) {
        Ok(format) => Ok(LogOption::Format(format)),
        Err(_) if text.is_empty() => Err("it must be human, json or a file".into()),
        Err(_) => Ok(LogOption::File(text.into())),
    }
}

fn env(text: &str) -> Result<Env, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(Env::Variable(name.into(), value.into())),
        None if !text.is_empty() => Ok(Env::Chosen(text.into())),
        _ => Err("it must have the form NAME=VALUE".into()),
    }
}
