//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use troop::Policy;

/// One port, many processes, any language.
#[derive(Debug, Parser)]
#[command(name = "troop", version, about, max_term_width = 100)]
pub(crate) struct Troop {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
}

/// Run a program as a cluster, in the foreground
///
/// The program listens as it always does; its copies share the port. Workers that die are started again. SIGHUP replaces them one by
/// one without losing a connection, SIGTERM and SIGINT end them gracefully, a second one at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  troop run server.js                  one worker per CPU, on the port that server.js listens on
  troop run -w 4 --policy shared ./my-server --port 8000
  troop run --env NODE_ENV=production --cwd /srv/app server.js
  kill -HUP $(pidof troop)             replace the workers one by one

Exit codes: 0 after a graceful end, 1 if the workers cannot be kept running, 2 for wrong arguments.")]
pub(crate) struct Run {
    /// How many workers: a number, or `auto` for one per CPU that this process may use (its affinity and cgroup quota count)
    #[arg(short, long, value_name = "N|auto", default_value = "auto", value_parser = workers)]
    pub(crate) workers: Workers,

    /// How connections are spread: in exact turns, or by the kernel among all workers
    /// [default: round-robin, or as NODE_CLUSTER_SCHED_POLICY says]
    #[arg(long, value_name = "round-robin|shared")]
    pub(crate) policy: Option<Policy>,

    /// An environment variable for the workers; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(OsString, OsString)>,

    /// Working directory of the workers
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,

    /// Discard what the workers print (the end of standard error is still shown when they keep dying)
    #[arg(long)]
    pub(crate) silent: bool,

    /// How long a worker may take to finish before it is killed
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) grace: Duration,

    /// How events are written to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log: LogFormat,

    /// The program: a script (.js, .mjs, .cjs, .ts) runs under node, anything else as itself
    pub(crate) program: OsString,

    /// The program's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Workers(pub(crate) usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One sentence per event
    Human,
    /// One JSON object per event
    Json,
}

fn workers(text: &str) -> Result<Workers, String> {
    match text {
        "auto" | "max" => Ok(Workers(troop::available_workers())),
        _ => match text.parse() {
            Ok(n @ 1..=4096) => Ok(Workers(n)),
            _ => Err("it must be `auto` or a number from 1 to 4096".into()),
        },
    }
}

fn variable(text: &str) -> Result<(OsString, OsString), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("it must have the form NAME=VALUE".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    number.filter(|d| d.as_secs() <= 86_400).ok_or_else(|| "it must be a number of seconds from 0 to 86400".into())
}
