//! What is to run, and how.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use troop::Scheduling;
use troop::policy::{BadScheduling, Pattern};

use super::name;
use super::pm2::Pm2;
use crate::config::{self, Form, LogFormat, Ready, Size, Time, When, Workers};

/// Run a program as a cluster, in the foreground
///
/// The program listens as it always does; its copies share the port. Workers that die are started
/// again. SIGHUP replaces them one by one without losing a connection, SIGTERM and SIGINT end them
/// gracefully, a second one or SIGQUIT at once. SIGTTIN and SIGTTOU start one more and one less,
/// SIGWINCH ends them and keeps the port until SIGHUP, SIGUSR1 opens log files anew.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop run server.js                  one worker per CPU, on the port that server.js listens on
  troop run -w 4 --policy steered ./my-server --port 8000
  troop run --policy 8000=sticky:proxy=pass --policy 9000=p2c server.js
  troop run --env NODE_ENV=production --cwd /srv/app server.js
  troop run -b 8000 -w 4 uvicorn app:app --fd {fd}
  troop run web                        the app web of the troop.toml that is here
  troop run --name web server.js       …and then, elsewhere: troop ls, troop reload web, troop scale web 8, troop stop web
  troop run -w 0 server.js             the program alone, for a debugger

Exit codes: 0 after a graceful end, 1 if the workers cannot be kept running, 2 for wrong arguments.")]
pub(crate) struct Foreground {
    #[command(flatten)]
    pub(crate) run: Run,

    /// The program's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

/// What is to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// What the app is called by `troop ls`, `reload` and so on; by default as the program, with a
    /// number if there is one like that
    #[arg(short, long, value_parser = name)]
    pub(crate) name: Option<String>,

    /// How many workers: a number, or `auto` for one per CPU that this process may use (its
    /// affinity and cgroup quota count), or 0 to run the program alone [default: auto]
    #[arg(short, long, visible_short_alias = 'i', visible_alias = "instances", value_name = "N|auto", value_parser = config::workers)]
    #[arg(allow_negative_numbers = true)]
    pub(crate) workers: Option<Workers>,

    /// For programs that do not speak Node's protocol (gunicorn, uvicorn, Go, Rust with listenfd):
    /// listen here and give them the socket, as systemd does (LISTEN_FDS, LISTEN_PID,
    /// LISTEN_FDNAMES) and Einhorn (EINHORN_FD_0, …). May be repeated.
    ///
    /// ADDR is `8000`, `127.0.0.1:8000`, `udp:53`, a path, or `systemd:NAME` for a socket that
    /// systemd has given to troop. In the program's arguments, `{fd}` becomes the first socket's
    /// number, which is 3, `{fd1}` the next one's. The kernel decides which worker accepts: all on
    /// one socket, or, with `--policy steered`, each on its own, evenly. Workers are told to end by
    /// SIGTERM.
    #[arg(short, long, value_name = "[NAME=]ADDR")]
    pub(crate) bind: Vec<String>,

    /// How connections are spread; may be repeated, with ADDR= for the listeners of one port,
    /// address or path.
    ///
    /// round-robin: in exact turns (the default, unless NODE_CLUSTER_SCHED_POLICY says otherwise).
    /// weighted: in turns by --weights. least-connections, p2c: to the less busy. sticky: by
    /// client. shared: the kernel decides among all who accept. steered: the kernel decides by a
    /// program of troop's, at no cost for each connection. After `sticky:` there can be
    /// prefix=BITS, prefix6=BITS, proxy=pass|strip, cookie=NAME, query=NAME, wait=MILLISECONDS;
    /// `steered:sticky` goes by the client's address in the kernel.
    #[arg(long, value_name = "[ADDR=]POLICY", env = "TROOP_POLICY", value_delimiter = ';', value_parser = chosen)]
    pub(crate) policy: Vec<Chosen>,

    /// Let workers listen here and nowhere else: `8000`, `127.0.0.1:8000`, `udp:53`, a path,
    /// `@abstract`, `fd:3`; may be repeated
    #[arg(long, value_name = "ADDR", conflicts_with = "bind")]
    pub(crate) may_listen: Vec<Pattern>,

    /// Let workers listen on this descriptor, which troop has inherited, by its number; may be
    /// repeated. Those from systemd need no naming
    #[arg(long = "offer-fd", value_name = "N", conflicts_with = "bind")]
    pub(crate) fd: Vec<i32>,

    /// The workers' parts of the connections, in relation to 100: `5,100,100` makes the first of
    /// three a canary
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) weights: Vec<u32>,

    /// An environment variable for the workers; may be repeated. Without a value: the environment
    /// of this name in a PM2 file
    #[arg(long, value_name = "NAME=VALUE", value_parser = env)]
    pub(crate) env: Vec<Env>,

    /// A file with environment variables for the workers, one NAME=VALUE per line; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,

    /// Working directory of the workers
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,

    /// The user that workers run as, with its groups
    #[arg(long, visible_alias = "uid")]
    pub(crate) user: Option<String>,

    /// The group that workers run as
    #[arg(long, visible_alias = "gid")]
    pub(crate) group: Option<String>,

    /// How long a worker may take to finish before it is killed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = config::time)]
    pub(crate) grace: Option<Time>,

    /// When a worker is ready to take another one's place [default: auto]
    #[arg(long, value_enum)]
    pub(crate) ready: Option<Ready>,

    /// Replace a worker that has more memory than this, such as 300M
    #[arg(long, visible_alias = "max-memory-restart", value_name = "SIZE", value_parser = config::size)]
    pub(crate) max_memory: Option<Size>,

    /// Replace a worker that is older than this, such as 1d
    #[arg(long, value_name = "TIME", value_parser = config::time)]
    pub(crate) max_age: Option<Time>,

    /// Ask each worker for this path from time to time, and replace one that does not answer well
    #[arg(long, value_name = "PATH")]
    pub(crate) health: Option<String>,

    /// Which ends of workers are followed by a restart [default: always]
    #[arg(long, value_enum)]
    pub(crate) restart: Option<When>,

    /// Reload when files change
    #[arg(long)]
    pub(crate) watch: bool,

    /// Discard what the workers print (the end of standard error is still shown when they keep
    /// dying)
    #[arg(long)]
    pub(crate) silent: bool,

    /// Write what the workers print into this file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Write their standard error into this file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) error: Option<PathBuf>,

    /// How lines of output are written [default: prefixed in files, else plain]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Form>,

    /// How events are written to standard error [default: human]
    #[arg(long, value_enum)]
    pub(crate) log: Option<LogFormat>,

    /// Anything that a troop.toml can say about an app: `--set restart.max=3`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,

    #[command(flatten)]
    pub(crate) pm2: Pm2,

    /// Read apps from a file; PROGRAM then names one of them. Command-line options override the file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// The program: a script (.js, .mjs, .cjs, .ts) runs under node, anything else as itself. Or an
    /// app of the troop.toml in this directory, or such a file; optional if that has only one app
    pub(crate) program: Option<OsString>,

    /// The program's arguments.
    #[arg(skip)]
    pub(crate) args: Vec<OsString>,

    /// Nobody waits to hear how it goes.
    #[arg(skip)]
    pub(crate) unawaited: bool,
}

/// A variable, or the name of a set of them.
#[derive(Debug, Clone)]
pub(crate) enum Env {
    Variable(String, String),
    Chosen(String),
}

/// A policy, and the listeners that it is for, if not for all.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) listeners: Option<Pattern>,
    pub(crate) scheduling: Scheduling,
}

pub(super) fn chosen(text: &str) -> Result<Chosen, BadScheduling> {
    // A policy's own options have `=` too, but behind its name and a colon.
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

fn env(text: &str) -> Result<Env, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(Env::Variable(name.into(), value.into())),
        None if !text.is_empty() => Ok(Env::Chosen(text.into())),
        _ => Err("it must have the form NAME=VALUE".into()),
    }
}
